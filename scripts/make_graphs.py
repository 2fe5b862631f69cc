"""Make the compiled graphs that ship with the package, from its shipped checkpoints."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.on_arrays import MODE, tracer_of
from quantface_arch.runtime.openvino.compiled_parts import identity
from quantface_arch.runtime.openvino.shipped import graphs_file, pack
from quantface_arch.runtime.processor import FULL, SPARE
from quantface_arch.utils.cli import Parser, run

DESCRIPTION = """\
Trace shipped checkpoints and write their graphs into the package, for processors with VNNI and for
others. Run it again when a checkpoint, or the way in which it is compiled, changes: a test tells.

example:
  python scripts/make_graphs.py
"""
MODELS = ("mini-w4a8", "mini-fast-w4a8")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    parser.add_argument("--models", nargs="+", default=MODELS, help="shipped names")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the graphs, and print their sizes."""
    for model in args.models:
        path = resolve_model(model)
        for largest in (FULL, SPARE):
            target = graphs_file(path, largest)
            with tempfile.TemporaryDirectory() as scratch:
                kept = tracer_of(path).trace(largest, Path(scratch))
                pack(Path(scratch), target, identity(path, MODE, largest), kept)
            share = target.stat().st_size / path.stat().st_size
            print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB, {share:.2f} x the model")
    return 0


if __name__ == "__main__":
    run(main, make_parser())
