"""Export a checkpoint to ONNX or OpenVINO, for programs other than this one."""

from __future__ import annotations

from quantface_arch.commands.export import main, make_parser
from quantface_arch.utils.cli import run

if __name__ == "__main__":
    run(main, make_parser())
