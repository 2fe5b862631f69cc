"""Fetch restorers from the hub into the cache, list them, and remove them."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantface_arch.errors import UsageError
from quantface_arch.pretrained.hub.cache import entries, remove
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import QUANTIZED, fetchable, sources
from quantface_arch.restore.arguments import add_fetch_arguments
from quantface_arch.restore.load import note_printer
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending
from quantface_arch.utils.distributed import Shard

NAMES = [name for source in sources() for name in (source, *(f"{source}-{q}" for q in QUANTIZED))]
DESCRIPTION = f"""\
Fetch a restorer from the Hugging Face hub into the cache: ask once, fetch, going on where an
earlier run ended, check every file, and quantize if the name says so. Other commands then take the
restorer by its name.

names: {", ".join(NAMES)}, or USER/REPOSITORY, somebody's
checkpoint of this package.

examples:
  OSDFace's files and Stable Diffusion 2.1-base:
    python scripts/fetch.py osdface
  the same, quantized on the shipped faces:
    python scripts/fetch.py osdface-w4a8
  what the cache has, and free it:
    python scripts/fetch.py --list
    python scripts/fetch.py --remove osdface

A lock file beside each restorer keeps the SHA-256 of every file: what is fetched later must be the
same.
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(*HUB_VARIABLES),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="restorer to fetch")
    what.add_argument("--list", action="store_true", help="show what the cache has")
    what.add_argument("--remove", metavar="NAME", help="remove a restorer from the cache")
    add_fetch_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Do what the command line says.

    Raises:
        UsageError: the name stands for nothing on the hub.
    """
    if args.list:
        print_entries()
        return 0
    if args.remove is not None:
        for path in remove(args.remove):
            print(f"removed {path}")
        return 0
    if not fetchable(args.name):
        raise UsageError(f"{args.name!r}: allowed are {', '.join(NAMES)} and USER/REPOSITORY")
    if Path(args.name).exists():
        raise UsageError(f"{args.name}: a file or folder here has this name, and would be taken")
    from quantface_arch.integration.obtain import obtain

    options = FetchOptions(args.yes, False, args.base, args.revision, args.endpoint)
    print(obtain(args.name, options, note_printer(Shard())))
    return 0


def print_entries() -> None:
    """Print the cache's restorers with their sizes."""
    found = list(entries())
    for path, size in found:
        print(f"{size / 1e9:8.3f} GB  {path}")
    print(f"{sum(size for _, size in found) / 1e9:8.3f} GB in all")
