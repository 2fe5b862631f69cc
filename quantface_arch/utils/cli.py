"""Run every command in the same way, with one-line errors and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from quantface_arch import __version__
from quantface_arch.errors import QuantFaceError, UsageError, one_line
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.installation import missing_message

__all__ = [
    "HUB_VARIABLES",
    "Parser",
    "add_common_arguments",
    "add_version_argument",
    "describe",
    "ending",
    "run",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
HUB_VARIABLES = ("QUANTFACE_CACHE", "QUANTFACE_YES", "QUANTFACE_SD_BASE", "HF_ENDPOINT", "HF_TOKEN")
_VARIABLES = {
    "HF_ENDPOINT": "the hub's address",
    "HF_TOKEN": "logs in to the hub",
    "OMP_NUM_THREADS": "threads that compute (default: one for each core)",
    "QUANTFACE_CACHE": "folder of compiled and fetched models (default: ~/.cache/quantface)",
    "QUANTFACE_SD_BASE": "Stable Diffusion 2.1-base, a folder or a hub id",
    "QUANTFACE_YES": "1 fetches models from the hub without asking",
}


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that reports wrong options in one line, without the usage.

    Its description and epilog keep their line breaks.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"error: {message} (see {self.prog} --help)\n")


def describe(error: BaseException) -> str:
    """Return the error as one line; errors other than our own are shown with their type."""
    text = one_line(error)
    if isinstance(error, QuantFaceError):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        return missing_message(error.name.partition(".")[0])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def ending(
    *variables: str,
    done: str = "done",
    failed: str = "failed; the last line says why",
    wrong: str = "wrong usage; nothing was done",
) -> str:
    """Return the end of a command's help: exit statuses, and the environment variables it reads.

    Args:
        variables: names of the variables.
        done, failed, wrong: what the statuses 0, 1 and 2 mean.
    """
    statuses = {0: done, EXIT_FAILED: failed, EXIT_USAGE: wrong, EXIT_INTERRUPTED: "interrupted"}
    lines = ["exit status:", *(f"  {status:<5}{meaning}" for status, meaning in statuses.items())]
    if variables:
        width = max(map(len, variables)) + 2
        lines += ["", "environment:"]
        lines += [f"  {name:{width}}{_VARIABLES[name]}" for name in variables]
    return "\n".join(lines)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every command has."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    add_version_argument(parser)


def add_version_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that prints the version."""
    version = f"quantface {__version__}"
    parser.add_argument(
        "--version", action="version", version=version, help="show the version and exit"
    )


def run(main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse the command line, call ``main`` and exit with its return value; never return.

    The parser also gets the options of ``add_common_arguments``. The exit status is 2 for a
    :class:`UsageError` and for options that do not parse, 1 for every other exception, and 130
    after an interrupt.
    """
    add_common_arguments(parser)
    args = parser.parse_args()
    try:
        status = main(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        status = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    if Shard.here().count > 1:
        # A thread of torch sometimes aborts a process that is done, so end without waiting for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
