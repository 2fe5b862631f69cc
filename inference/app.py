"""Serve a web page that restores photographs: ``python inference/app.py``."""

from __future__ import annotations

from quantface_arch.utils.cli import run
from quantface_arch.web.cli import main, make_parser

if __name__ == "__main__":
    run(main, make_parser())
