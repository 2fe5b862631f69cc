"""Scripts by which shells complete the command line of ``quantface``; shtab writes them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec

from quantface_arch.errors import UsageError
from quantface_arch.pretrained.names import shipped_models
from quantface_arch.utils.cli import Parser, add_common_arguments, add_version_argument

__all__ = ["PRINT_COMPLETION", "SHELLS", "completion_script"]

PRINT_COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "tcsh")
# A function of the shell, whose name makes shtab's bash script treat its words as file names.
_MODELS = "_quantface_model_files"
# How a value is completed, by its placeholder in --help. shtab knows "file" and "directory".
_KINDS = {
    "DIR": "directory",
    "DIR_OR_ID": "directory",
    "FILE": "file",
    "NAME_OR_PATH": {"bash": _MODELS, "zsh": _MODELS, "tcsh": "f"},
    "PATH": "file",
}


def completion_script(
    shell: str, parsers: Mapping[str, tuple[argparse.ArgumentParser, str]]
) -> str:
    """Return a script that completes the command's names, options and values in a shell.

    Args:
        shell: one of ``SHELLS``.
        parsers: the name of every command, its parser, and what it does.

    Raises:
        UsageError: shtab is not installed.
    """
    if find_spec("shtab") is None:
        raise UsageError(
            f"{PRINT_COMPLETION}: the package shtab is not installed; pip install shtab"
        )
    import shtab

    root = Parser(prog="quantface")
    root.add_argument(PRINT_COMPLETION, choices=SHELLS, help="print a completion script and exit")
    add_version_argument(root)
    commands = root.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, (parser, what) in parsers.items():
        add_common_arguments(parser)
        for action in parser._actions:
            if action.metavar in _KINDS:
                # shtab reads this attribute.
                vars(action)["complete"] = _KINDS[str(action.metavar)]
        commands.add_parser(name, help=what, description=what, parents=[parser], add_help=False)
    return shtab.complete(root, shell, preamble=_preamble(shell))


def _preamble(shell: str) -> str:
    """Return the function that completes the names of shipped models and the paths of others."""
    names = " ".join(shipped_models())
    bodies = {
        "bash": f'compgen -W "{names}" -- "$1"\n  compgen -f -- "$1"',
        "zsh": f"_alternative 'models:shipped model:({names})' 'files:file:_files'",
    }
    return f"{_MODELS}() {{\n  {bodies[shell]}\n}}" if shell in bodies else ""
