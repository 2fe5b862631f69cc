"""Choose how the layers of an options file's network are balanced, and measure what it gains."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
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
from quantface_arch.quant.calibration.selection import branch_ranks
from quantface_arch.quant.calibration.trial import output_error

__all__ = ["choose_balance", "table"]


def choose_balance(
    options: Path, out: Path, faces: Path | None, num_images: int | None, device: str
) -> tuple[dict[str, LayerBalance], dict[str, tuple[float, float]]]:
    """Choose the balancing of every layer, and save it.

    Args:
        options: the options file of a training.
        out: the file to write.
        faces: folder of degraded faces; None takes those of the options.
        num_images: images to use; None takes the number of the options.
        device: a torch device.

    Returns:
        the balancing and the SQNR, see ``output_ratios``, of every layer.

    Raises:
        QuantFaceError: the options are wrong, or their recipe balances nothing.
    """
    opt = read_options(options)
    (opt["quant"].get("balance") or {}).pop("file", None)
    if faces is not None:
        calibration = opt["quant"].get("calibration") or {}
        opt["quant"]["calibration"] = {**calibration, "dataroot_lq": str(faces)}
    net = build_arch(opt["network_g"]).eval().to(device)
    recipe, bits, _ = read_quant_options(opt["quant"], net)
    if not recipe.balance.wanted:
        raise QuantFaceError(
            f"options file {options}: quant balance kind is none, so there is nothing to choose; "
            "allowed are auto, scale, rotate, both"
        )
    images = calibration_images(opt, net, num_images)
    batch_size = int((opt["quant"].get("calibration") or {}).get("batch_size", 4))
    plain = copy.deepcopy(net)
    convert(net, recipe, bits)
    plan = balance_stage(net, recipe, CalibrationData(images, batch_size))
    save_balance(plan, out, {"recipe": recipe.to_dict(), "pictures": len(images)})
    return plan, output_ratios(plain, recipe, bits, images[:batch_size], plan)


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
