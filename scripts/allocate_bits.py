"""Choose a bit width for every layer within budgets, and write them as a bit map."""

from __future__ import annotations

from quantface_arch.commands.allocate_bits import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
