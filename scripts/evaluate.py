"""Compute metrics of restored images: print the means, and write every score as CSV."""

from __future__ import annotations

from quantface_arch.commands.evaluate import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
