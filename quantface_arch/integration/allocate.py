"""Run bit allocation as an options file describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.integration.allocate_options import WIDTHS, AllocateOptions
from quantface_arch.integration.options import read_options
from quantface_arch.quant import CalibrationData, LayerBalance, Recipe, quant_layers
from quantface_arch.quant.allocation.allocation import Allocation, solve_allocation
from quantface_arch.quant.allocation.budget import TIMED, Budget
from quantface_arch.quant.allocation.distance import network_distance
from quantface_arch.quant.allocation.pipeline import Measurement, measure_network
from quantface_arch.quant.allocation.sensitivity_file import Sensitivities
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.allocation.timed import Clock
from quantface_arch.quant.config.specs import PLAIN_KINDS, is_width
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime import device_type, resolve
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.option_fields import parse_options

__all__ = ["AllocationRun", "allocate_from_options", "read_settings"]

# These ranks are offered unless the options name others.
RANKS = (0, 8, 16)


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
        activations: candidate bit widths of inputs; None are those in the options.
        budget: upper limits by name, which override those of the options.
        curves: also solve for ranges of budgets.
        device: torch device.
    """

    options: Path
    out: Path
    sensitivities: Path | None = None
    input: Path | None = None
    num_images: int | None = None
    activations: Sequence[int] | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    curves: bool = False
    device: str = "cpu"


def allocate_from_options(run: AllocationRun, shard: Shard) -> Allocation | None:
    """Measure sensitivities unless they are given, and solve for the choices of the layers.

    Args:
        shard: this process among those that measure together; the first one times and solves.

    Returns:
        the allocation, or None in every process but the first.

    Raises:
        QuantFaceError: the options file, its network or its faces cannot be used, the runtime to
            time is not available, or no choices meet the budget.
    """
    opt = read_options(run.options)
    given = dict(opt.get("allocate") or {})
    if run.activations is not None:
        given["activations"] = run.activations
    settings = read_settings(given, run.budget)
    if run.curves and settings.ranks is None:
        raise QuantFaceError("a Pareto plot needs a budget of megabytes or milliseconds")
    if run.input is not None:
        calibration = opt["quant"].get("calibration") or {}
        opt["quant"]["calibration"] = {**calibration, "dataroot_lq": str(run.input)}
    network = _Network(run, opt)
    timed = None if settings.budget.milliseconds is None else _timed(settings.budget)
    if run.sensitivities is not None:
        found = Sensitivities.load(run.sensitivities)
    else:
        found = network.measure(settings, shard)
    if not shard.is_first:
        return None
    clock = None if timed is None else network.clock(settings, *timed)
    return solve_allocation(found, settings, clock, run.curves)


def _timed(budget: Budget) -> tuple[str, str]:
    """Return the runtime and the torch device that a budget times.

    Raises:
        QuantFaceError: the runtime cannot be used here or on that device.
    """
    runtime = budget.runtime or next(iter(TIMED))
    device = budget.device or TIMED[runtime]
    try:
        return resolve(runtime, device_type(device)), device
    except QuantFaceError as error:
        raise QuantFaceError(f"budget milliseconds: {error}") from None


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
    limits = Budget.from_dict({**options.budget, **(budget or {})})
    whole = limits.has_file_or_time
    weights = options.weight_bits or ((4, 6, 8) if whole else (4,))
    inputs = options.activations or ((4, 6, 8) if whole else (3, 4, 5, 6, 8))
    _check_branches(options, whole)
    return AllocationSettings(
        widths={
            "w": _checked_widths("weight_bits", weights),
            "a": _checked_widths("activations", inputs),
        },
        ranks=tuple(sorted({*(options.ranks or RANKS)})) if whole else None,
        balances=tuple(options.balances or PLAIN_KINDS),
        budget=limits,
        error_weight=options.lambda_,
        protect=dict(options.protect),
        count=list(options.count) or ["*"],
        image_size=options.image_size,
    )


def _check_branches(options: AllocateOptions, whole: bool) -> None:
    """Raise QuantFaceError if the candidate ranks or kinds of balancing are not allowed."""
    for name in ("ranks", "balances"):
        if getattr(options, name) and not whole:
            raise QuantFaceError(
                f"allocate option {name}: found {list(getattr(options, name))!r} with a budget of "
                "bit widths alone, in which they do not count; give megabytes or milliseconds"
            )
    if not all(type(rank) is int and rank >= 0 for rank in options.ranks):
        raise QuantFaceError(
            f"allocate option ranks: found {list(options.ranks)!r}, allowed are whole numbers "
            "from 0"
        )
    for kind in options.balances:
        check_choice("allocate option balances", kind, PLAIN_KINDS)


def _checked_widths(what: str, value: Sequence[Any]) -> tuple[int, ...]:
    if not value or not all(is_width(bits) for bits in value):
        raise QuantFaceError(
            f"allocate option {what}: found {list(value)!r}, allowed are whole numbers {WIDTHS}"
        )
    return tuple(sorted(set(value)))


class _Network:
    """The float network of an options file, which is built when it is first needed."""

    def __init__(self, run: AllocationRun, opt: Mapping[str, Any]) -> None:
        self.run, self.opt = run, opt
        self.quant = {key: value for key, value in opt["quant"].items() if key != "bit_map"}

    @cached_property
    def parts(self) -> tuple[nn.Module, Recipe, Mapping[str, LayerBalance] | None]:
        """Return the network, its recipe, and its balancing from an earlier run."""
        # Import these late: they take seconds, and solving from a file does not need them.
        import quantface_arch.data
        import quantface_arch.integration.registered
        import quantface_arch.losses.registered  # noqa: F401
        from quantface_arch.archs.build import build_arch
        from quantface_arch.models.quantize_stage import read_quant_options

        torch.manual_seed(self.opt["manual_seed"])
        net = build_arch(self.opt["network_g"]).eval().to(self.run.device)
        if next(quant_layers(net), None) is not None:
            raise QuantFaceError(
                f"{self.run.options}: network_g is already quantized, expected a float network"
            )
        recipe, _, plan = read_quant_options(self.quant, net)
        return net, recipe, plan

    def measure(self, settings: AllocationSettings, shard: Shard) -> Sensitivities:
        """Measure the sensitivities; the network is converted."""
        net, recipe, plan = self.parts
        from quantface_arch.models.quantize_stage import calibration_images

        perceptual = (self.opt.get("allocate") or {}).get("perceptual")
        job = Measurement(
            recipe=recipe,
            plan=plan,
            distance=_perceptual_distance(perceptual, net, self.run.device),
            path=self.run.out.with_suffix(".sensitivities.json"),
            described_by=[self.quant, perceptual, settings.image_size],
        )
        images = calibration_images(self.opt, net, self.run.num_images)
        batch_size = int((self.quant.get("calibration") or {}).get("batch_size", 4))
        data = CalibrationData(images, batch_size, shard.is_first, shard=shard)
        return measure_network(net, data, job, settings)

    def clock(self, settings: AllocationSettings, runtime: str, device: str) -> Clock:
        """Return what times this network."""
        net, recipe, _ = self.parts
        from quantface_arch.integration.clock import NetworkClock

        arch = traits_of(net).arch_options or self.opt["network_g"]
        return NetworkClock(arch, recipe, settings.image_size, runtime, device)


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
