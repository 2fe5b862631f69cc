"""The command ``quantface``: the name of a command, then its own options."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple, NoReturn

from quantface_arch import __version__
from quantface_arch.commands.completion import PRINT_COMPLETION, SHELLS, completion_script
from quantface_arch.utils.cli import EXIT_USAGE, HUB_VARIABLES, Parser, ending, run

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """A command: the module that has its ``main`` and ``make_parser``, and what it does."""

    module: str
    what: str


COMMANDS = {
    "restore": Command("quantface_arch.restore.cli", "restore the faces in images and videos"),
    "app": Command(
        "quantface_arch.web.cli", "serve a page in the browser that restores photographs"
    ),
    "quantize": Command(
        "quantface_arch.commands.quantize", "quantize a restorer, without training"
    ),
    "allocate": Command(
        "quantface_arch.commands.allocate_bits", "choose a bit width for every layer"
    ),
    "balance": Command("quantface_arch.commands.balance", "choose how every layer is balanced"),
    "export": Command("quantface_arch.commands.export", "write a model for other programs"),
    "evaluate": Command("quantface_arch.commands.evaluate", "measure restored images"),
    "cost": Command("quantface_arch.commands.count_cost", "count bytes and operations of a model"),
    "fetch": Command("quantface_arch.commands.fetch", "fetch restorers from the Hugging Face hub"),
    "publish": Command("quantface_arch.commands.publish", "write a repository for the hub"),
    "doctor": Command("quantface_arch.doctor.cli", "check this installation"),
}
HELP = ("-h", "--help", "help")
_SHELLS = f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}"


def main() -> NoReturn:
    """Run the command that the command line names, as its script does; never return."""
    name, *words = sys.argv[1:] or HELP[:1]
    if name in HELP:
        print(_usage())
        sys.exit(0)
    if name == "--version":
        print(f"quantface {__version__}")
        sys.exit(0)
    if name.partition("=")[0] == PRINT_COMPLETION:
        parser = Parser(prog="quantface")
        parser.add_argument(PRINT_COMPLETION, choices=SHELLS)
        run(_print_completion, parser)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else f", allowed are {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}{hint}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    command = import_module(COMMANDS[name].module)
    sys.argv = [f"quantface {name}", *words]
    parser = command.make_parser()
    parser.prog = sys.argv[0]
    run(command.main, parser)


def _print_completion(args: argparse.Namespace) -> int:
    """Print the script by which a shell completes the command."""
    parsers = {
        name: (import_module(command.module).make_parser(), command.what)
        for name, command in COMMANDS.items()
    }
    print(completion_script(args.print_completion, parsers))
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: quantface COMMAND ...",
            "",
            "Low-bit face restoration. quantface COMMAND --help explains a command.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help                show this help message and exit",
            "  --version                 show the version and exit",
            f"  {PRINT_COMPLETION} SHELL  print a script that completes words in {_SHELLS}",
            "",
            "examples:",
            "  quantface restore -i photo.jpg -o results",
            "  quantface quantize --model mini --recipe w4a8 -o my-w4a8.safetensors",
            "",
            ending(*HUB_VARIABLES, "OMP_NUM_THREADS"),
            "",
            "BasicSR trains, in a checkout: python basicsr/train.py -opt options/FILE.yml",
        ]
    )
