"""Count what each layer costs: parameters, bytes, multiply-accumulates and bit-operations."""

from __future__ import annotations

from quantface_arch.commands.count_cost import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
