"""Plot the inputs of a quantized restorer's layers, and its error along the network."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from quantface_arch.commands.quantize import check_is_float
from quantface_arch.data.calibration_faces import open_faces
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import read_metadata
from quantface_arch.reports.layer_plots import (
    draw_distribution,
    draw_errors,
    find_layers,
    layer_errors,
    sample_inputs,
)
from quantface_arch.utils.cli import Parser, run

DESCRIPTION = """\
Plot what happens inside a quantized restorer, as PNG files.

  --layer NAME   the input of a layer, per channel and as a histogram with the quantization levels,
                 before and after balancing: OUTPUT/NAME.png, for every name
  --errors       how far each layer's output is from the full-precision network's, in dB, along the
                 network: OUTPUT/errors.png; several checkpoints give several lines

examples:
  python scripts/draw_layers.py --quantized mini-w4a4 -i datasets/faces_val/lq -o images \\
      --layer vae.decoder.up_blocks.2.resnets.0.conv1 unet.mid_block.resnets.0.conv1
  python scripts/draw_layers.py --quantized mini-w4a8 mini-w4a4 -i datasets/faces_val/lq \\
      -o images --errors

Use aligned faces, degraded like those that you want to restore; 2 to 8 are enough.
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    add = parser.add_argument
    add("--model", default="mini", help="the full-precision restorer (default: %(default)s)")
    add("--quantized", nargs="+", required=True, help="quantized checkpoints or shipped names")
    add("-i", "--input", required=True, type=Path, help="a face, or a folder searched for faces")
    add("-o", "--output", required=True, type=Path, help="folder for the plots")
    add("--layer", nargs="+", metavar="NAME", default=[], help="layers whose input to plot")
    add("--errors", action="store_true", help="plot the error of every layer")
    add("--num-images", type=int, default=4, help="faces to use (default: %(default)s)")
    add("--size", type=int, default=512, help="resize faces to this side (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Draw the plots and print the file names."""
    if not args.layer and not args.errors:
        raise UsageError("nothing to draw: give --layer NAME or --errors")
    if min(args.num_images, args.size) < 1:
        raise UsageError("--num-images and --size: allowed are whole numbers from 1")
    faces = open_faces(args.input, args.size, args.num_images)
    batches = [face[None] for face in faces]
    check_is_float(args.model)
    teacher = load_model(args.model, runtime="reference")
    errors = {}
    for name in args.quantized:
        student = _load_quantized(name, args.model)
        label = resolve_model(name).stem
        if args.layer:
            prefix = f"{label}-" if len(args.quantized) > 1 else ""
            _draw_layers(teacher, student, batches, args.layer, args.output, prefix)
        if args.errors:
            errors[label] = layer_errors(teacher, student, batches)
            _print_worst(label, errors[label])
    if errors:
        draw_errors(args.output / "errors.png", errors)
        print(args.output / "errors.png")
    return 0


def _load_quantized(name: str, teacher: str) -> torch.nn.Module:
    metadata = read_metadata(resolve_model(name))
    if metadata["state"] != "quantized":
        raise QuantFaceError(f"{name}: found state {metadata['state']}, expected quantized")
    path = resolve_model(teacher)
    if path.is_file() and read_metadata(path)["arch"] != metadata["arch"]:
        raise QuantFaceError(f"{name}: its architecture differs from {teacher}'s")
    return load_model(name, runtime="reference")


def _draw_layers(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    batches: list[Tensor],
    names: list[str],
    folder: Path,
    prefix: str,
) -> None:
    layers = find_layers(student, names)
    for name, (before, after) in sample_inputs(teacher, layers, batches).items():
        path = folder / f"{prefix}{name}.png"
        draw_distribution(path, layers[name], before, after)
        print(path)


def _print_worst(label: str, errors: dict[str, float], count: int = 5) -> None:
    print(f"{label}: layers with the largest error")
    for name in sorted(errors, key=errors.__getitem__)[:count]:
        print(f"  {errors[name]:6.1f} dB  {name}")


if __name__ == "__main__":
    run(main, make_parser())
