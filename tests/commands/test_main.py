"""The command quantface runs every command under its name."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from quantface_arch import __version__
from quantface_arch.commands.main import COMMANDS, main


@pytest.fixture
def typed(monkeypatch, capsys):
    """Return a function that types ``quantface`` and words: (exit status, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["quantface", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_all_commands_are_shown(typed, words):
    status, out, _ = typed(*words)
    assert status == 0 and all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_under_its_name(typed, name):
    status, out, _ = typed(name, "--help")
    assert status == 0 and out.startswith(f"usage: quantface {name} [-h]")
    status, out, _ = typed(name, "--version")
    assert (status, out) == (0, f"quantface {__version__}\n")
    status, _, err = typed(name, "--no-such-option")
    assert status == 2 and err.startswith("error: ") and f"quantface {name} --help" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_and_exit_statuses(typed, name):
    _, out, _ = typed(name, "--help")
    description, _, rest = out.partition("\noptions:\n")
    assert "\nexamples:\n" in description
    assert re.search(r"^exit status:\n  0 +\S.*\n  1 .*\n  2 .*\n  130  interrupted$", rest, re.M)


def test_help_names_every_environment_variable_of_the_package(typed, repo):
    files = [*(repo / "quantface_arch").rglob("*.py")]
    read = {name for file in files for name in re.findall(r"\"(QUANTFACE_\w+)\"", file.read_text())}
    helps = "".join(typed(name, "--help")[1] for name in COMMANDS)
    assert len(read) > 2 and read == set(re.findall(r"^  (QUANTFACE_\w+) ", helps, re.M))


def test_an_unknown_command_is_refused(typed):
    assert typed("restroe") == (2, "", "error: no command 'restroe'; did you mean restore?\n")
    status, _, err = typed("xyz")
    assert status == 2 and "allowed are restore, app" in err
    assert typed("--version")[1] == f"quantface {__version__}\n"


def test_a_command_does_its_work(typed, repo, model, tmp_path):
    words = ("--model", model, "--runtime", "reference", "-o", tmp_path)
    assert typed("restore", "-i", repo / "inputs/astronaut.jpg", *words)[0] == 0
    assert (tmp_path / "restored/astronaut.png").is_file()


def test_the_command_is_installed():
    (found,) = entry_points(group="console_scripts", name="quantface")
    assert found.load() is main


def test_a_module_can_be_run_in_its_place():
    command = [sys.executable, "-m", "quantface_arch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: quantface COMMAND")
