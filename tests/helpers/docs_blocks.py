"""The commands and the code of a page, parsed and run as a reader would.

A block of shell commands is run, unless its first line, or the end of the command's line, is a
comment that says why not, see ``TOLD``; then its programs, their ``--help`` and their options are
checked. Python blocks are run in their order, in one namespace per page; one whose first line is
``# NAME.py`` is written to that file instead.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
TOLD = r"(takes (minutes|hours)|needs |installs|downloads|runs until|for those who)"
# Programs that only blocks which are not run may name: what they do is not ours to check.
FOREIGN = {"git", "pip", "pre-commit", "mkdocs", "docker", "curl", "torchrun", "apt-get", "ln"}
# Programs that have a test of their own, which takes long.
TESTED = {("-m", "quantface_arch.doctor")}
SHELL = {"cd", "cp", "cat", "do", "done", "export", "for", "ls", "mkdir", "mv", "source"}


@dataclass(frozen=True)
class Command:
    """One command of a shell block, its line's comment, and whether a reader is to run it here."""

    words: tuple[str, ...]
    line: str
    told: bool


class Parsed(BaseException):
    """Ends a program when its command line has been understood."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args_found = args


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the fenced blocks of a page, in their order."""
    found = re.findall(
        r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [
        (kind, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, kind, text in found
    ]


def commands(block: str) -> list[Command]:
    """Return the commands of a shell block; assignments before a command are dropped."""
    told = bool(re.match(rf"# {TOLD}", block))
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        comment = re.search(rf"# {TOLD}", line)
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|", "&"):
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words[:1] == ["quantface"]:
                    words[:1] = ["python", "-m", "quantface_arch"]
                if words:
                    found.append(Command(tuple(words), line, told or bool(comment)))
                words = []
            else:
                words.append(word)
    return found


def program(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return ``(file,)`` or ``("-m", module)`` of a command that starts Python; None for others."""
    if words[0] == "torchrun":
        return next(((word,) for word in words if word.endswith(".py")), None)
    if not re.fullmatch(r"(\.venv/bin/)?python[\d.]*", words[0]):
        return None
    return words[1:3] if words[1] == "-m" else words[1:2]


def location(what: tuple[str, ...]) -> Path:
    """Return a program's file: the repository's, or one that the page has written."""
    ours = REPO / what[0]
    return ours if ours.is_file() else Path(what[0]).resolve()


@contextlib.contextmanager
def started(what: tuple[str, ...], arguments: tuple[str, ...]):
    """Set ``sys.argv`` and ``sys.path`` as for a program of its own, and undo what it sets."""
    before = sys.argv, sys.path[:], set(sys.modules), dict(os.environ)
    sys.argv = [what[-1], *arguments]
    folder = str(location(what).parent)
    if what[0] != "-m":
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.environ.clear()
        os.environ.update(before[3])
        for name in set(sys.modules) - before[2]:
            file = getattr(sys.modules[name], "__file__", None)
            if file and str(Path(file).parent) == folder and REPO in Path(file).parents:
                del sys.modules[name]


def execute(what: tuple[str, ...], arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run a Python program in this process; return its exit status and what it printed."""
    output = io.StringIO()
    silent = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
    with started(what, arguments), silent[0], silent[1]:
        try:
            if what[0] == "-m":
                runpy.run_module(what[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(location(what)), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
            return (code if isinstance(code, int) else int(code is not None)), output.getvalue()
    return 0, output.getvalue()


@functools.cache
def helps(what: tuple[str, ...]) -> bool:
    """Return whether a program's ``--help`` runs and says something."""
    status, text = execute(what, ("--help",))
    return status == 0 and "usage" in text


def understood(what: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Let a program's own parser judge a command line; the options files it names have to exist."""
    if what[0] == "-m" and not what[1].startswith("quantface_arch"):
        assert importlib.util.find_spec(what[1]) or what[1] in FOREIGN, f"no module {what[1]}"
        return
    assert what[0] == "-m" or location(what).is_file(), f"no program {what[0]}"
    assert helps(what), f"{what}: --help fails"
    if "--help" in arguments:
        return
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        raise Parsed(original(self, *args, **kwargs))

    argparse.ArgumentParser.parse_args = parse_args
    try:
        status, text = execute(what, arguments)
    except Parsed as parsed:
        check_options_file(parsed.args_found)
        return
    finally:
        argparse.ArgumentParser.parse_args = original
    raise AssertionError(f"{what} {arguments}: status {status}: {text}")


def check_options_file(args: argparse.Namespace) -> None:
    """Check that the options file exists, with the entries that ``--force_yml`` replaces."""
    path = getattr(args, "opt", None)
    if path is None or Path(path).stem.isupper():
        return
    opt = yaml.safe_load((REPO / path).read_text().replace("!!float ", ""))
    for forced in getattr(args, "force_yml", None) or ():
        place = opt
        for key in forced.split("=")[0].split(":"):
            assert key in place, f"{path}: no entry {forced}"
            place = place[key]


def check_shell(block: str) -> None:
    """Check that Bash can read the block and that every program is known."""
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for command in commands(block):
        what = program(command.words)
        if what is not None:
            alone = command.words[0] != "torchrun"
            assert command.told or alone, f"run or not? {command.line}"
            understood(what, command.words[command.words.index(what[-1]) + 1 :])
        elif command.words[0] == "make":
            for target in command.words[1:]:
                assert re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.M), target
        else:
            assert command.words[0] in SHELL or command.told, f"run or not? {command.line}"
            known = Path(command.words[0]).name in SHELL | FOREIGN
            assert known, f"unknown program: {command.line}"


def run_shell(block: str, monkeypatch) -> None:
    """Run those commands of a checked block that a reader is to run here, and ``make`` never."""
    for command in commands(block):
        if command.told or command.words[0] in ("make", "source"):
            continue
        what = program(command.words)
        if what in TESTED:
            continue
        if what is not None:
            arguments = tuple(os.path.expandvars(word) for word in command.words[1 + len(what) :])
            status, text = execute(what, arguments)
            assert status == 0, f"{command.line}\n{text}"
        elif command.words[0] == "export":
            name, _, value = command.words[1].partition("=")
            monkeypatch.setenv(name, os.path.expandvars(value))
        elif command.words[0] == "cd":
            monkeypatch.chdir(command.words[1])
        else:
            subprocess.run(["bash", "-c", shlex.join(command.words)], check=True, timeout=20)


def written(code: str) -> bool:
    """Write a block of Python to the file that its first line names, if it does."""
    file = re.match(r"# (\w+\.py)\n", code)
    if file:
        Path(file[1]).write_text(code)
    return bool(file)


def run_python(code: str, namespace: dict, name: str) -> None:
    """Run a block of Python, or write it to its file."""
    if not written(code):
        exec(compile(code, name, "exec"), namespace)
