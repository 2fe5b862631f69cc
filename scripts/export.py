"""Write a checkpoint as a file of ONNX or OpenVINO, for programs other than this one."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.runtime.lowering import FULL, MODES, SPARE, Lowering
from quantface_arch.runtime.onnx_file import missing, write_onnx
from quantface_arch.utils.cli import Parser, run

DESCRIPTION = """\
Write a checkpoint, float or quantized, as one network that takes degraded faces and gives restored
ones: float (N, 3, H, W) in [-1, 1], RGB, N as the caller likes. H and W are multiples of what the
network needs, 32 for the minis; as the reference does, the file refuses others. Quantized layers
keep their integers, and run as int8 where the program that reads the file can do that.

examples:
  for ONNX Runtime, on phones too:
    python scripts/export.py --model mini-w4a8 --format onnx -o mini-w4a8.onnx
  for OpenVINO's own tools (a .bin is written beside the .xml):
    python scripts/export.py --model mini-w4a8 --format openvino -o mini-w4a8.xml

For layers with inputs of 8 bits, --mode folded multiplies balancing and branch into the weight,
which is rounded again, to 8 bits: the fastest. --mode faithful keeps the reference's operations.

x86 processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow: files
for those want --weight-bits 7.
"""
LARGEST = {8: FULL, 7: SPARE}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="shipped name or checkpoint")
    add("--format", required=True, choices=SUFFIXES, help="of the file")
    add("-o", "--output", required=True, type=Path, help="file to write, .onnx or .xml")
    add("--mode", "--way", choices=MODES, default="auto", help="auto folds 8-bit inputs (default)")
    add("--weight-bits", type=int, choices=LARGEST, default=8, help="while running (8)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Check what was asked for, write the file."""
    suffix = SUFFIXES[args.format]
    if args.output.suffix != suffix:
        raise UsageError(f"--output {args.output}: a name that ends in {suffix} is wanted")
    path = resolve_model(args.model)
    if path.is_dir():
        raise UsageError(f"--model {path}: a checkpoint is wanted; scripts/quantize.py makes one")
    lowering = Lowering(args.mode, LARGEST[args.weight_bits])
    if args.format == "onnx":
        hint = missing()
        if hint:
            raise UsageError(f"--format onnx: the package onnx is not installed; {hint}")
        write_onnx(path, build_arch, lowering, args.output)
    else:
        from quantface_arch.runtime.openvino.trace import write_openvino

        write_openvino(path, build_arch, lowering, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run(main, make_parser())
