"""Bit allocation from a float network to a bit map: prepare, measure layer by layer, solve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.costs import layer_costs, limits_of, probes_of
from quantface_arch.quant.allocation.relative import relative_errors
from quantface_arch.quant.allocation.sensitivity import measure
from quantface_arch.quant.allocation.sensitivity_file import (
    FORMAT_VERSION,
    LayerFacts,
    Sensitivities,
    part_of,
)
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.allocation.solve import allocate
from quantface_arch.quant.calibration.calibrate import calibrating
from quantface_arch.quant.calibration.run import CalibrationData, watch
from quantface_arch.quant.calibration.selection import branch_ranks, kinds_for
from quantface_arch.quant.calibration.store import digest
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.cost.macs import count_macs
from quantface_arch.quant.cost.stand_in import StandIn
from quantface_arch.quant.nn.convert import convert
from quantface_arch.quant.nn.layers import QuantLayer, quant_layers
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.lowrank import branch_parameters, full_rank
from quantface_arch.quant.ptq import add_branches, apply_plan, balance_stage, calibration_stage
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar

__all__ = ["Measurement", "check_feasible", "measure_network", "prepare_sensitivities"]


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


def check_feasible(found: Sensitivities, settings: AllocationSettings) -> None:
    """Raise QuantFaceError if a budget or pattern fails whatever the measurements are."""
    free = layer_costs(found, settings, free=True)
    allocate({name: x.costs for name, x in free.items()}, limits_of(found, free, settings.budget))


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
    data = replace(data, images=images)
    key = _fingerprint(net, images, job.described_by)
    found = Sensitivities.earlier(job.path, key) if shard.is_first else None
    found = shard.agree(found) or prepare_sensitivities(
        net, job.recipe, key, len(images), settings.image_size
    )
    check_feasible(found, settings)
    probes = probes_of(found, settings)
    wanted = settings.choices(found.layers) if settings.ranks is not None else {}
    related = all(found.relative.get(name, {}).keys() >= {*x} for name, x in wanted.items())
    if related and not any(found.missing(probes)):
        return found
    if next(quant_layers(net), None) is None:
        convert(net, job.recipe)
    if related:
        _balance(net, job, data)
    else:
        found.relative = _relate(net, job, data, wanted)
        found.save(part_of(job.path, shard))
    # Processes share out the layers, not the probes, so that one process measures all bit widths of
    # a layer.
    own = shard.share(list(found.layers))
    calibration = calibration_stage(net, data, job.recipe.branch.iterations > 1)
    # Without its branch, a layer with outliers would count many times what it costs in the end.
    add_branches(net, job.recipe, calibration)
    measure(
        net,
        calibration,
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


def _balance(net: nn.Module, job: Measurement, data: CalibrationData) -> dict[str, LayerBalance]:
    """Balance a converted network and return the balancing by layer."""
    if job.plan is not None:
        apply_plan(net, job.plan)
        return dict(job.plan)
    return balance_stage(net, job.recipe, data) if job.recipe.balance.wanted else {}


def _relate(
    net: nn.Module,
    job: Measurement,
    data: CalibrationData,
    wanted: Mapping[str, Sequence[LayerChoice]],
) -> dict[str, dict[LayerChoice, float]]:
    """Balance a converted network, and return the relative errors of all choices.

    Processes share out the layers.
    """
    shard, sources = data.shard or Shard(), traits_of(net).input_sources()
    watched = watch(net, calibrating(net, keep_samples=True), data, "sampling")
    unbalanced = {
        layer.name: type(layer).from_float(
            layer, layer.weight_spec, layer.activation_spec, layer.name
        )
        for layer in quant_layers(net)
    }
    plan = _balance(net, job, data)
    ranks = branch_ranks(net, job.recipe.branch)
    found: dict[str, dict[LayerChoice, float]] = {}
    names = shard.share(list(wanted))
    for name in progress_bar(names, desc="relating", unit="layer", disable=not data.progress):
        layer = unbalanced[name]
        found[name] = relative_errors(
            layer,
            watched.observers[name],
            job.recipe,
            sources.get(name, (layer.channels,)),
            (plan.get(name, LayerBalance()), ranks.get(name, (0, 0))[0]),
            wanted[name],
        )
    parts = shard.gather(found)
    return {name: errors for part in parts for name, errors in part.items()}


def prepare_sensitivities(
    net: nn.Module, recipe: Recipe, key: str, batches: int, image_size: int
) -> Sensitivities:
    """Convert a network in place and describe its layers; nothing is measured yet.

    Args:
        key: identifies everything that the sensitivities will depend on.
        batches: number of batches on which each probe is measured.
        image_size: side in pixels of the image whose multiply-accumulates weight the inputs.

    Raises:
        QuantFaceError: a layer never runs, or see ``convert``.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=next(net.parameters()).device)
    macs = count_macs(net, image)
    parameters = sum(value.numel() for value in net.parameters())
    convert(net, recipe)
    layers = {layer.name: layer for layer in quant_layers(net)}
    idle = layers.keys() - macs.keys()
    if idle:
        raise QuantFaceError(f"layer {min(idle)}: the network does not use it; exclude it")
    facts = {
        name: _facts(layers[name], recipe, traits_of(net).input_sources(), macs[name])
        for name in macs
        if name in layers
    }
    fixed, own = _bytes(net, recipe, facts)
    limit = int(recipe.branch.budget * parameters)
    return Sensitivities(key, batches, facts, fixed, own, limit)


def _facts(
    layer: QuantLayer, recipe: Recipe, sources: Mapping[str, tuple[int, ...]], macs: int
) -> LayerFacts:
    parts = sources.get(layer.name, (layer.channels,))
    kinds, _ = kinds_for(layer, recipe.balance.offering("auto"), parts)
    kept = any(fnmatchcase(layer.name, pattern) for pattern in recipe.eight_bit)
    largest = int(recipe.branch.cap * full_rank(layer.weight))
    return LayerFacts(
        parameters=layer.weight.numel(),
        macs=macs,
        fixed=(layer.weight_spec.bits, layer.activation_spec.bits) if kept else None,
        channels=layer.channels,
        rank_parameters=branch_parameters(layer.weight, 1),
        largest_rank=largest if layer.groups == 1 else 0,
        kinds=tuple(dict.fromkeys(kinds)),
        branch_bits=layer.branch_bits,
        zero_points=layer.channels if layer.activation_spec.zero_points == "channel" else 0,
    )


def _bytes(net: nn.Module, recipe: Recipe, layers: Mapping[str, LayerFacts]) -> tuple[int, int]:
    """Return the ``fixed_bytes`` and ``recipe_bytes`` of a converted network."""
    choices = {
        layer.name: layers[layer.name].choice(
            (layer.weight_spec.bits, layer.activation_spec.bits), 0, "none"
        )
        for layer in quant_layers(net)
    }
    with_recipe, plain = (
        StandIn.of(net, changed, traits_of(net).arch_options).bytes
        for changed in (recipe, recipe.with_choices(choices))
    )
    chosen = sum(layers[name].bytes(name, choice) for name, choice in choices.items())
    return plain - chosen, with_recipe - plain


def _fingerprint(net: nn.Module, images: Sequence[Tensor], options: Any) -> str:
    """Return a hash of everything that sensitivities depend on."""
    # Earlier releases measured without branches, and their results must not be continued.
    text = json.dumps([FORMAT_VERSION, "with branches", options], default=str)
    state = hashlib.sha256((digest(net) + text).encode())
    for image in images:
        state.update(image.contiguous().numpy().tobytes())
    return state.hexdigest()
