"""Restore the faces in images and videos: ``python inference/restore.py -i inputs``."""

from __future__ import annotations

from quantface_arch.restore.cli import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
