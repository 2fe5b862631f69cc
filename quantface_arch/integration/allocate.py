"""Run bit allocation as an options file describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.allocate_options import WIDTHS, AllocateOptions
from quantface_arch.integration.options import read_options
from quantface_arch.quant.allocation.distance import network_distance
from quantface_arch.quant.allocation.pipeline import (
    Allocation,
    AllocationSettings,
    Measurement,
    measure_network,
    solve_allocation,
)
from quantface_arch.quant.allocation.sensitivity_file import Sensitivities
from quantface_arch.quant.allocation.solve import Budget
from quantface_arch.quant.calibration.run import CalibrationData
from quantface_arch.quant.config.specs import is_width
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.option_fields import parse_options

__all__ = ["AllocationRun", "allocate_from_options", "read_settings"]


@dataclass(frozen=True, kw_only=True)
class AllocationRun:
    """One run of bit allocation.

    Attributes:
        options: the options file.
        out: the bit map to write. The sensitivities are kept beside it, in
            ``<stem>.sensitivities.json``.
        sensitivities: file to solve from; None measures them.
        input: folder of degraded faces; None is the one in the options.
        num_images: number of images to measure on; None is the number in the options.
        budget: upper limits by name, which override those of the options.
        device: torch device.
    """

    options: Path
    out: Path
    sensitivities: Path | None = None
    input: Path | None = None
    num_images: int | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"


def allocate_from_options(run: AllocationRun, shard: Shard) -> Allocation | None:
    """Measure sensitivities unless they are given, and solve for bit widths.

    Args:
        shard: this process among those that measure together; the first one solves.

    Returns:
        the allocation, or None in every process but the first.

    Raises:
        QuantFaceError: the options file, its network or its faces cannot be used, or no bit widths
            meet the budget.
    """
    opt = read_options(run.options)
    allocate = opt.get("allocate") or {}
    settings = read_settings(allocate, run.budget)
    if run.input is not None:
        calibration = opt["quant"].get("calibration") or {}
        opt["quant"]["calibration"] = {**calibration, "dataroot_lq": str(run.input)}
    if run.sensitivities:
        found = Sensitivities.load(run.sensitivities)
    else:
        found = _measure(run, opt, settings, allocate.get("perceptual"), shard)
    return solve_allocation(found, settings) if shard.is_first else None


def read_settings(
    given: Mapping[str, Any], budget: Mapping[str, float] | None = None
) -> AllocationSettings:
    """Check the block ``allocate`` of an options file.

    Args:
        given: the block.
        budget: upper limits by name, which override those of the block.

    Raises:
        QuantFaceError: an option is unknown, or its value is not allowed.
    """
    options = parse_options(AllocateOptions, "allocate", given)
    for pattern, bits in options.protect.items():
        _checked_widths(f"protect {pattern}", [bits])
    return AllocationSettings(
        widths={
            "w": _checked_widths("weight_bits", options.weight_bits),
            "a": _checked_widths("activations", options.activations),
        },
        budget=replace(Budget.from_dict(options.budget), **(budget or {})),
        error_weight=options.lambda_,
        protect=dict(options.protect),
        count=list(options.count) or ["*"],
        macs_size=options.macs_size,
    )


def _checked_widths(what: str, value: Sequence[Any]) -> tuple[int, ...]:
    if not value or not all(is_width(bits) for bits in value):
        raise QuantFaceError(
            f"allocate option {what}: found {list(value)!r}, allowed are whole numbers {WIDTHS}"
        )
    return tuple(sorted(set(value)))


def _measure(
    run: AllocationRun,
    opt: Mapping[str, Any],
    settings: AllocationSettings,
    perceptual: Mapping[str, Any] | None,
    shard: Shard,
) -> Sensitivities:
    """Measure the sensitivities of the options' network."""
    # Import these late: they take seconds, and solving from a file does not need them.
    import quantface_arch.data
    import quantface_arch.integration.registered
    import quantface_arch.losses.registered  # noqa: F401
    from quantface_arch.archs.build import build_arch
    from quantface_arch.models.quantize_stage import calibration_images, read_quant_options

    torch.manual_seed(opt["manual_seed"])
    net = build_arch(opt["network_g"]).eval().to(run.device)
    if next(quant_layers(net), None) is not None:
        raise QuantFaceError(
            f"{run.options}: network_g is already quantized, expected a float network"
        )
    quant = {key: value for key, value in opt["quant"].items() if key != "bit_map"}
    recipe, _, plan = read_quant_options(quant, net)
    job = Measurement(
        recipe=recipe,
        plan=plan,
        distance=_perceptual_distance(perceptual, net, run.device),
        path=run.out.with_suffix(".sensitivities.json"),
        described_by=[quant, perceptual, settings.macs_size],
    )
    images = calibration_images(opt, net, run.num_images)
    batch_size = int((quant.get("calibration") or {}).get("batch_size", 4))
    data = CalibrationData(images, batch_size, shard.is_first, shard=shard)
    return measure_network(net, data, job, settings)


def _perceptual_distance(
    options: Mapping[str, Any] | None, net: nn.Module, device: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return 1 - SSIM in the network's range of values, or a loss of BasicSR's registry."""
    if options is None:
        return network_distance(net)
    from basicsr.losses import build_loss
    from basicsr.utils.registry import LOSS_REGISTRY

    if not isinstance(options, Mapping) or options.get("type") not in LOSS_REGISTRY:
        known = ", ".join(sorted(name for name, _ in LOSS_REGISTRY))
        raise QuantFaceError(
            f"allocate option perceptual: found {options!r}, expected {{type: NAME, ...}} "
            f"with NAME one of {known}"
        )
    return build_loss(dict(options)).to(device)
