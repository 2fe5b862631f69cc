"""Quantize a face restorer after training, without training it again."""

from __future__ import annotations

from quantface_arch.commands.quantize import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
