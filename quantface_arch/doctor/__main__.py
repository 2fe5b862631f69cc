"""Run the command ``python -m quantface_arch.doctor``."""

from __future__ import annotations

from quantface_arch.doctor.cli import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
