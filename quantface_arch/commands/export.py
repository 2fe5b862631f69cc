"""Export a checkpoint to ONNX or OpenVINO, for programs other than this one."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantface_arch.errors import UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.runtime.processor import FULL, SPARE
from quantface_arch.utils.cli import Parser, ending
from quantface_arch.utils.runtime_names import MODES

DESCRIPTION = """\
Write a checkpoint, float or quantized, as one network that takes degraded faces and gives restored
ones: float (N, 3, H, W) in [-1, 1], RGB, with any N. H and W must be multiples of a number that the
network gives, 32 for the minis; like the reference, the file refuses others. Quantized layers keep
their integers, and run as int8 if the program that reads the file supports it.

examples:
  for ONNX Runtime, on phones too:
    python scripts/export.py --model mini-w4a8 --format onnx -o mini-w4a8.onnx
  for face-enhancer programs such as FaceFusion:
    python scripts/export.py --model mini --format onnx --face-enhancer -o mini.onnx
  for OpenVINO's own tools (a .bin is written beside the .xml):
    python scripts/export.py --model mini-w4a8 --format openvino -o mini-w4a8.xml

For layers with inputs of 8 bits, --mode folded folds rotation and branch into the weight, which is
rounded again, to 8 bits; this is the fastest. --mode faithful keeps the reference's operations.

--face-enhancer writes the file by the convention of these programs: input "input" and output
"output", both one face (1, 3, 512, 512). The network's own colour fix is part of the file. A .hash
file beside it holds its CRC32, which FaceFusion checks.

x86 processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow: files
for them need --weight-bits 7.
"""
LARGEST = {8: FULL, 7: SPARE}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending("QUANTFACE_CACHE"),
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME_OR_PATH", help="shipped name or checkpoint")
    add("--format", required=True, choices=SUFFIXES, help="format of the file")
    add(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="file to write, .onnx or .xml",
    )
    add("--mode", "--way", choices=MODES, default="auto", help="auto folds 8-bit inputs (default)")
    add(
        "--weight-bits",
        type=int,
        choices=LARGEST,
        default=8,
        help="weight bits at run time (8)",
    )
    add(
        "--face-enhancer",
        action="store_true",
        help="write the file for face-enhancer programs; only for face restorers, as onnx",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Check the options and write the file."""
    if args.face_enhancer and args.format != "onnx":
        raise UsageError(f"--face-enhancer: found --format {args.format}, allowed is --format onnx")
    suffix = SUFFIXES[args.format]
    if args.output.suffix != suffix:
        raise UsageError(f"--output {args.output}: expected a name that ends in {suffix}")
    path = resolve_model(args.model)
    if path.is_dir():
        raise UsageError(f"--model {path}: expected a checkpoint; scripts/quantize.py makes one")
    from quantface_arch.archs.build import build_arch
    from quantface_arch.runtime.lowering import Lowering

    lowering = Lowering(args.mode, LARGEST[args.weight_bits])
    if args.format == "onnx":
        from quantface_arch.pretrained.face_enhancer import write_face_enhancer
        from quantface_arch.runtime.onnx_file import missing, write_onnx

        hint = missing()
        if hint:
            raise UsageError(f"--format onnx: the package onnx is not installed; {hint}")
        write = write_face_enhancer if args.face_enhancer else write_onnx
        write(path, build_arch, lowering, args.output)
    else:
        from quantface_arch.runtime.openvino.trace import write_openvino

        write_openvino(path, build_arch, lowering, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0
