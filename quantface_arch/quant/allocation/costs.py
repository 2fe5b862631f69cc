"""Turn measured sensitivities into the costs and limits of the integer program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from quantface_arch.errors import QuantFaceError, check_patterns
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.sensitivity import Probe
from quantface_arch.quant.allocation.sensitivity_file import Sensitivities
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.allocation.solve import KINDS, LayerCosts, Limit, combine_costs
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["AVERAGES", "branch_limit", "layer_costs", "limits_of", "probes_of", "size_limit"]

# The names of the two averages in a budget.
AVERAGES = {"w": "weight_bits", "a": "activation_bits"}


def probes_of(found: Sensitivities, settings: AllocationSettings) -> list[Probe]:
    """Return what to measure: every bit width that a layer has a choice with.

    Raises:
        QuantFaceError: see ``AllocationSettings.choices``.
    """
    probes: list[Probe] = []
    for name, choices in settings.choices(found.layers).items():
        for place, kind in enumerate(KINDS):
            widths = sorted({choice.bits[place] for choice in choices})
            if len(widths) > 1 or settings.ranks is not None:
                probes += [(name, kind, bits) for bits in widths]
    return probes


def layer_costs(
    found: Sensitivities, settings: AllocationSettings, free: bool = False
) -> dict[str, LayerCosts]:
    """Return the cost of every choice of every layer.

    The cost is what the two bit widths cost the network's image, times the error of the layer's
    output with the choice's branch and balancing, relative to that without the branch.

    Args:
        free: make all costs 0, which needs no measurements.

    Raises:
        QuantFaceError: a pattern matches no layer, or a choice was not measured.
    """
    check_patterns("count", settings.count, found.layers)
    mixed = {} if free else _mixed(found, probes_of(found, settings), settings.error_weight)
    layers = {}
    for name, choices in settings.choices(found.layers).items():
        relative = found.relative.get(name, {})
        costs = {}
        for choice in choices:
            if not free and settings.ranks is not None and choice not in relative:
                raise QuantFaceError(f"layer {name}: {_described(choice)} was not measured")
            cost = sum(
                mixed.get((name, kind, bits), 0.0)
                for kind, bits in zip(KINDS, choice.bits, strict=True)
            )
            costs[choice] = cost * relative.get(choice, 1.0)
        facts = found.layers[name]
        counted = any(fnmatchcase(name, pattern) for pattern in settings.count)
        layers[name] = LayerCosts(costs, facts.parameters, facts.macs, counted)
    return layers


def limits_of(
    found: Sensitivities, layers: Mapping[str, LayerCosts], budget: Budget
) -> list[Limit]:
    """Return the limits of a budget, except that of time, and that of all branches together."""
    limits = []
    for place, kind in enumerate(KINDS):
        most = getattr(budget, AVERAGES[kind])
        total = sum(layer.share(kind) for layer in layers.values())
        if most is not None and total:
            amounts = {
                name: {choice: layer.share(kind) * choice.bits[place] for choice in layer.costs}
                for name, layer in layers.items()
            }
            limits.append(Limit(f"budget {AVERAGES[kind]}", amounts, most, total))
    if budget.megabytes is not None:
        limits.append(size_limit(found, layers, budget.megabytes))
    if budget.has_file_or_time:
        limits.append(branch_limit(found, layers))
    return limits


def branch_limit(found: Sensitivities, layers: Mapping[str, LayerCosts]) -> Limit:
    """Return the limit of the parameters of all branches together, see ``BranchSpec.budget``."""
    amounts = {
        name: {x: (x.rank or 0) * found.layers[name].rank_parameters for x in layer.costs}
        for name, layer in layers.items()
    }
    return Limit("quant: branch: budget, in parameters", amounts, found.branch_parameters)


def size_limit(found: Sensitivities, layers: Mapping[str, LayerCosts], megabytes: float) -> Limit:
    """Return the limit of a checkpoint's size."""
    amounts = {
        name: {choice: found.layers[name].bytes(name, choice) for choice in layer.costs}
        for name, layer in layers.items()
    }
    return Limit("budget megabytes", amounts, megabytes, 10**6, found.fixed_bytes / 10**6)


def _described(choice: LayerChoice) -> str:
    text = f"{choice.weight_bits} and {choice.activation_bits} bits"
    return f"{text} with rank {choice.rank or 0} and balance {choice.balance}"


def _mixed(found: Sensitivities, probes: Sequence[Probe], weight: float) -> dict[Probe, float]:
    for name, kind, bits in found.missing(probes):
        what = "weight" if kind == "w" else "activation"
        raise QuantFaceError(f"layer {name}: {what} bit width {bits} was not measured")
    means = {probe: np.mean(found.measured[probe], axis=0) for probe in probes}
    costs = combine_costs(
        {probe: float(mean[0]) for probe, mean in means.items()},
        {probe: float(mean[1]) for probe, mean in means.items()},
        weight,
    )
    least: dict[tuple[str, str], float] = {}
    for name, kind, bits in sorted(costs):
        # More bits do no harm, but tiny effects are measured with noise.
        cost = min(costs[name, kind, bits], least.get((name, kind), np.inf))
        costs[name, kind, bits] = least[name, kind] = cost
    return costs
