"""Fetch restorers from the hub into the cache, list them, and remove them."""

from __future__ import annotations

from quantface_arch.commands.fetch import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
