"""Choose how a network's channels are balanced, and write the choice to a file."""

from __future__ import annotations

from quantface_arch.commands.balance import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
