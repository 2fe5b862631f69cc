"""Bit allocation from a float network to a bit map: prepare, measure layer by layer, solve."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.sensitivity import measure
from quantface_arch.quant.allocation.sensitivity_file import (
    LayerFacts,
    Sensitivities,
    Widths,
    part_of,
)
from quantface_arch.quant.allocation.solve import Budget, LayerCosts, allocate, average_bits
from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.quant.calibration.run import CalibrationData
from quantface_arch.quant.calibration.store import digest
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.cost.macs import count_macs
from quantface_arch.quant.cost.planned import fixed_bytes
from quantface_arch.quant.nn.convert import convert
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ptq import apply_plan, balance_stage, calibration_stage
from quantface_arch.utils.distributed import Shard

__all__ = [
    "Allocation",
    "AllocationSettings",
    "Measurement",
    "measure_network",
    "prepare_sensitivities",
    "solve_allocation",
]


@dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """The settings of a bit allocation.

    Attributes:
        widths: candidate bit widths by kind, ``{"w": ..., "a": ...}``; a single one is fixed.
        budget: upper limits of the averages and of the checkpoint's size.
        error_weight: λ, from 0 to 1, the share of the quantization error in the cost; the rest is
            the perceptual distance.
        protect: name pattern → fixed bit width of the layers that match.
        count: name patterns of the layers that count in averages.
        macs_size: side in pixels of the image whose multiply-accumulates weight the inputs.
    """

    widths: Widths
    budget: Budget
    error_weight: float = 0.5
    protect: Mapping[str, int] = field(default_factory=dict)
    count: Sequence[str] = ("*",)
    macs_size: int = 512

    def costs(self, found: Sensitivities) -> dict[str, LayerCosts]:
        """Return the costs of every layer, see ``Sensitivities.costs``."""
        return found.costs(self.widths, self.error_weight, self.protect, self.count)

    def check_feasible(self, found: Sensitivities) -> None:
        """Raise QuantFaceError if a budget or pattern fails whatever the measurements are."""
        free = found.costs(self.widths, None, self.protect, self.count)
        allocate(free, self.budget, found.fixed_bytes)


@dataclass(frozen=True)
class Allocation:
    """The chosen bit widths, and the costs from which they were chosen.

    Attributes:
        layers: costs by layer name.
        bits: layer → (bits of the weight, bits of the input).
        fixed_bytes: bytes of the checkpoint other than the packed weights.
    """

    layers: Mapping[str, LayerCosts]
    bits: dict[str, tuple[int, int]]
    fixed_bytes: int

    @property
    def averages(self) -> dict[str, float]:
        """Return the average bit widths of weights and of inputs, rounded to 4 digits."""
        kinds = {"weight_bits": "w", "activation_bits": "a"}
        return {
            name: round(average_bits(self.layers, self.bits, kind), 4)
            for name, kind in kinds.items()
        }

    def summary(self, path: Path) -> str:
        """Return lines with the averages, the layers per bit width and the checkpoint's size."""
        lines = [f"{path}: {len(self.bits)} layers"]
        kinds = (("weight", "weight_bits"), ("input", "activation_bits"))
        for place, (kind, name) in enumerate(kinds):
            counts = sorted(Counter(widths[place] for widths in self.bits.values()).items())
            listed = ", ".join(f"{count} at {width}" for width, count in counts)
            lines.append(f"{kind}s: {self.averages[name]:.4f} bits on average ({listed})")
        packed = sum(
            self.layers[name].parameters * weight for name, (weight, _) in self.bits.items()
        )
        lines.append(f"checkpoint: about {round(self.fixed_bytes + packed / 8):,} bytes")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the sensitivities of a network are measured, and where they are kept.

    Attributes:
        recipe: selects the layers and their quantizers.
        plan: balancing by layer from an earlier run; None balances as the recipe says.
        distance: perceptual distance of two batches of images (pred, target), a scalar.
        path: JSON file of the results, which may hold those of an earlier run.
        described_by: plain data that identify recipe, plan and distance. Earlier results are
            continued only if these data, the weights and the images are the same.
    """

    recipe: Recipe
    plan: Mapping[str, LayerBalance] | None
    distance: Callable[[Tensor, Tensor], Tensor]
    path: Path
    described_by: Any


def solve_allocation(found: Sensitivities, settings: AllocationSettings) -> Allocation:
    """Choose the cheapest bit widths within the budget.

    Raises:
        QuantFaceError: see ``Sensitivities.costs`` and ``allocate``.
    """
    layers = settings.costs(found)
    return Allocation(
        layers, allocate(layers, settings.budget, found.fixed_bytes), found.fixed_bytes
    )


def measure_network(
    net: nn.Module, data: CalibrationData, job: Measurement, settings: AllocationSettings
) -> Sensitivities:
    """Measure the sensitivities of a float network, continuing results in the job's file.

    Args:
        net: a float network in evaluation mode; it is converted in place.
        data: images to calibrate and to measure on. The layers are distributed among the processes
            of its shard; each process returns everything.

    Raises:
        QuantFaceError: a layer never runs, or a budget or pattern cannot be met (both are checked
            before measuring); or see ``measure``.
    """
    images, shard = _only_images(data), data.shard or Shard()
    key = _fingerprint(net, images, job.described_by)
    found = Sensitivities.earlier(job.path, key) if shard.is_first else None
    found = shard.agree(found) or prepare_sensitivities(
        net, job.recipe, key, len(images), settings.macs_size
    )
    settings.check_feasible(found)
    probes = found.probes(settings.widths, settings.protect)
    if not any(found.missing(probes)):
        return found
    # Processes share out the layers, not the probes, so that one process measures all bit widths of
    # a layer.
    own = shard.share(list(found.layers))
    measure(
        net,
        _calibrate(net, job, replace(data, images=images)),
        [image[None] for image in images],
        [probe for name in own for probe in probes if probe[0] == name],
        job.distance,
        found.measured,
        lambda _: found.save(part_of(job.path, shard)),
        progress=data.progress,
    )
    found.collect(probes, job.path, shard)
    return found


def _only_images(data: CalibrationData) -> list[Tensor]:
    """Return the images of calibration data.

    Raises:
        QuantFaceError: the data hold calls with other arguments.
    """
    images = []
    for image in data.images:
        if not isinstance(image, Tensor):
            raise QuantFaceError(
                f"calibration_images: found {type(image).__name__}, the allocator takes images"
            )
        images.append(image)
    return images


def _calibrate(net: nn.Module, job: Measurement, data: CalibrationData) -> Calibration:
    """Convert a network if it is not yet, balance it, and return its calibration."""
    if next(quant_layers(net), None) is None:
        convert(net, job.recipe)
    if job.plan is not None:
        apply_plan(net, job.plan)
    elif job.recipe.balance.wanted:
        balance_stage(net, job.recipe, data)
    return calibration_stage(net, data)


def prepare_sensitivities(
    net: nn.Module, recipe: Recipe, key: str, batches: int, macs_size: int
) -> Sensitivities:
    """Convert a network in place and describe its layers; nothing is measured yet.

    Args:
        key: identifies everything that the sensitivities will depend on.
        batches: number of batches on which each probe is measured.
        macs_size: side in pixels of the image whose multiply-accumulates weight the inputs.

    Raises:
        QuantFaceError: a layer never runs, or see ``convert``.
    """
    image = torch.zeros(1, 3, macs_size, macs_size, device=next(net.parameters()).device)
    macs = count_macs(net, image)
    convert(net, recipe)
    layers = {layer.name: layer for layer in quant_layers(net)}
    idle = layers.keys() - macs.keys()
    if idle:
        raise QuantFaceError(f"layer {min(idle)}: the network does not use it; exclude it")
    facts = {}
    for name in macs:
        if name in layers:
            layer = layers[name]
            widths = (layer.weight_spec.bits, layer.activation_spec.bits)
            kept = any(fnmatchcase(name, pattern) for pattern in recipe.eight_bit)
            facts[name] = LayerFacts(layer.weight.numel(), macs[name], widths if kept else None)
    return Sensitivities(key, batches, facts, fixed_bytes(net, recipe))


def _fingerprint(net: nn.Module, images: Sequence[Tensor], options: Any) -> str:
    """Return a hash of everything that sensitivities depend on."""
    state = hashlib.sha256((digest(net) + json.dumps(options, default=str)).encode())
    for image in images:
        state.update(image.contiguous().numpy().tobytes())
    return state.hexdigest()
