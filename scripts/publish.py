"""Write a repository for the Hugging Face hub: ``python scripts/publish.py``."""

from __future__ import annotations

from quantface_arch.commands.publish import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
