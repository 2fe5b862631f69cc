"""Restore the faces in photographs: ``python inference/restore.py -i inputs``."""

from __future__ import annotations

from quantface_arch.cli import run
from quantface_arch.restore_cli import main, make_parser

if __name__ == "__main__":
    run(main, make_parser())
