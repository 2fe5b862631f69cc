"""Shells complete the command by the scripts that it prints."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from quantface_arch.commands.completion import SHELLS
from quantface_arch.commands.main import COMMANDS
from quantface_arch.pretrained.names import shipped_models

PARSERS = {name: import_module(command.module).make_parser() for name, command in COMMANDS.items()}


def quantface(*words):
    command = [sys.executable, "-m", "quantface_arch", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def scripts():
    """Return the script of every shell."""
    found = {shell: quantface("--print-completion", shell) for shell in SHELLS}
    assert all(done.returncode == 0 for done in found.values()), found
    return {shell: done.stdout for shell, done in found.items()}


@pytest.fixture
def completed(scripts, tmp_path):
    """Return a function that lets Bash complete the last word of command lines."""
    (tmp_path / "a file").touch()
    (tmp_path / "folder").mkdir()

    def complete(*lines):
        asked = [scripts["bash"]]
        for words in lines:
            asked += [
                f"COMP_WORDS=(quantface {shlex.join(words)}) COMP_CWORD={len(words)} COMPREPLY=()",
                "_shtab_quantface",
                '(IFS=/; echo "${COMPREPLY[*]}")',
            ]
        done = subprocess.run(
            ["bash", "--norc"], input="\n".join(asked), cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [line.split("/") if line else [] for line in done.stdout.splitlines()]

    return complete


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n"], input=scripts[shell], text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_commands_and_options_are_completed(completed):
    words = [
        ("re",),
        ("restore", "--mod"),
        ("restore", "--runtime", "o"),
        ("--print-completion", "z"),
    ]
    assert completed(*words) == [["restore"], ["--model"], ["openvino"], ["zsh"]]
    assert completed(("",)) == [list(COMMANDS)]


def test_all_options_of_all_commands_are_completed(completed):
    for (name, parser), found in zip(
        PARSERS.items(), completed(*((name, "-") for name in PARSERS)), strict=True
    ):
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = {text for action in shown for text in action.option_strings}
        assert set(found) == {*options, "--debug", "--version"}, name


def test_every_path_is_completed_by_files_or_folders(completed):
    paths = {
        (name, action.option_strings[-1]): action.metavar
        for name, parser in PARSERS.items()
        for action in parser._actions
        if action.option_strings and action.type is Path
    }
    assert len(paths) > 20
    found = completed(*((*words, "") for words in paths))
    for (words, metavar), names in zip(paths.items(), found, strict=True):
        assert set(names) == ({"folder"} if metavar == "DIR" else {"a file", "folder"}), words


def test_models_are_completed_by_name_and_as_files(completed):
    [restored, written, published] = completed(
        ("restore", "--model", ""), ("restore", "--model", "a"), ("publish", "mini-w")
    )
    assert set(restored) == {*shipped_models(), "a file", "folder"}
    assert written == ["a file"] and published == ["mini-w4a4", "mini-w4a8"]


def test_other_shells_get_the_names_of_models(scripts):
    names = " ".join(shipped_models())
    assert f"({names})" in scripts["zsh"] and "'n/--model/f/'" in scripts["tcsh"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--print-completion", "fish"], "invalid choice: 'fish'"),
        (["--print-completion"], "expected one argument"),
        (["--print-completion=bash", "restore"], "unrecognized arguments: restore"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message):
    done = quantface(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
