"""Choose how a network's channels are balanced, and write the choice to a file."""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.integration.options import read_options
from quantface_arch.models.quantize_stage import calibration_images, read_quant_options
from quantface_arch.quant import (
    BitMap,
    CalibrationData,
    LayerBalance,
    Recipe,
    balance_stage,
    calibrating,
    convert,
    quant_layers,
    save_balance,
)
from quantface_arch.quant.calibration.selection import branch_ranks, output_error
from quantface_arch.utils.cli import Parser
from quantface_arch.utils.devices import check_device
from quantface_arch.utils.files import atomic_path

DESCRIPTION = """\
Choose how the input channels of every layer are balanced (not at all, scaled, rotated or both),
and write it to a file that options can name. Nothing is quantized or trained.

The network is network_g of the options file, in full precision; quant holds the bit widths that
errors are measured at and the balance block, for example

  quant:
    name: w4a4
    balance: {kind: auto}           # or none, scale, rotate, both: the same for every layer

The images are those that training would calibrate on, or those of -i.

examples:
  choose for the shipped restorer:
    python scripts/balance.py -opt options/quantface_w4.yml --out balance.safetensors
  on degraded faces of your own:
    python scripts/balance.py -opt options/quantface_w4.yml -i datasets/faces_val/lq \\
        --out balance.safetensors
  then train or test with it: in the options file
    quant:
      balance: {file: balance.safetensors}
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-opt", required=True, type=Path, help="options file of a training, see options/")
    add("--out", required=True, type=Path, help="file to write, .safetensors")
    add("-i", "--input", type=Path, help="folder of degraded faces (default: from the options)")
    add("--num-images", type=int, help="images to use (default: from the options, else 32)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--report", type=Path, help="write the table of layers to this file, not to the screen")
    return parser


def main(args: argparse.Namespace) -> int:
    """Choose the balancing, save it, and print the table."""
    if args.out.suffix != ".safetensors":
        raise UsageError(f"{args.out}: the balancing is written as .safetensors")
    if args.input is not None and not args.input.is_dir():
        raise UsageError(f"{args.input}: no such folder of faces")
    opt = read_options(args.opt)
    (opt["quant"].get("balance") or {}).pop("file", None)
    if args.input is not None:
        calibration = opt["quant"].get("calibration") or {}
        opt["quant"]["calibration"] = {**calibration, "dataroot_lq": str(args.input)}
    net = build_arch(opt["network_g"]).eval().to(check_device(args.device))
    recipe, bits, _ = read_quant_options(opt["quant"], net)
    if not recipe.balance.wanted:
        raise QuantFaceError(
            f"options file {args.opt}: quant balance kind is none, so there is nothing to choose; "
            "allowed are auto, scale, rotate, both"
        )
    images = calibration_images(opt, net, args.num_images)
    batch_size = int((opt["quant"].get("calibration") or {}).get("batch_size", 4))
    plain = copy.deepcopy(net)
    convert(net, recipe, bits)
    plan = balance_stage(net, recipe, CalibrationData(images, batch_size))
    save_balance(plan, args.out, {"recipe": recipe.to_dict(), "pictures": len(images)})
    ratios = output_ratios(plain, recipe, bits, images[:batch_size], plan)
    _show(table(plan, ratios), args.report)
    kinds = Counter(balance.kind for balance in plan.values())
    print(f"{args.out}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    return 0


def output_ratios(
    net: nn.Module,
    recipe: Recipe,
    bits: BitMap | None,
    images: list[Tensor],
    plan: Mapping[str, LayerBalance],
) -> dict[str, tuple[float, float]]:
    """Return the SQNR in dB of each layer's output, without and with balancing.

    Only the layer that is measured is quantized.

    Args:
        net: float network that the plan was made for; it is converted.
        images: float (3, H, W); samples of the layers' inputs are taken from them.
    """
    convert(net, recipe, bits)
    ranks = branch_ranks(net, recipe.branch)
    with calibrating(net, keep_samples=True) as calibration, torch.no_grad():
        for image in images:
            net(image[None].to(next(net.parameters()).device))
    ratios = {}
    for layer in quant_layers(net):
        samples = calibration.observers[layer.name].samples.to(layer.weight.device)
        if not samples.numel():
            # No image reaches the layer, which therefore stays in floating point.
            continue
        with torch.no_grad():
            power = float(layer.product(samples, layer.weight, None).square().mean())
        svd, _ = ranks.get(layer.name, (0, 0))
        errors = (
            output_error(layer, samples, balance, svd)
            for balance in (LayerBalance(), plan[layer.name])
        )
        before, after = (_decibels(power / max(error, 1e-30)) for error in errors)
        ratios[layer.name] = (before, after)
    return ratios


def _decibels(ratio: float) -> float:
    return float(10 * torch.tensor(max(ratio, 1e-30), dtype=torch.float64).log10())


def table(plan: Mapping[str, LayerBalance], ratios: Mapping[str, tuple[float, float]]) -> str:
    """Return a table with a row per layer: kind, rotation, spread of its scales, and SQNR."""
    rows: list[tuple[str, ...]] = [
        ("layer", "kind", "rotation", "scales", "dB plain", "dB balanced")
    ]
    for name, balance in plan.items():
        rotation = " ".join(f"{count}x{size}" for count, size in balance.segments)
        spread = ""
        if balance.scale is not None:
            spread = f"1:{float(balance.scale.max() / balance.scale.min()):.1f}"
        numbers = [f"{value:.1f}" for value in ratios.get(name, ())] or ["never reached", ""]
        rows.append((name, balance.kind, rotation, spread, *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _show(text: str, path: Path | None) -> None:
    if path is None:
        print(text)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(f"{text}\n")
