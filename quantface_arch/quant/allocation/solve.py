"""Adaptive bit allocation: an integer program makes one choice per layer under budgets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = [
    "KINDS",
    "Amounts",
    "LayerCosts",
    "Limit",
    "allocate",
    "average_bits",
    "combine_costs",
    "contenders",
    "total_cost",
]

Key = TypeVar("Key", bound=Hashable)
# Layer → choice → what the choice takes of a budget, or what it costs.
Amounts = Mapping[str, Mapping[LayerChoice, float]]

# The two quantizers of a layer are those of its weight and of its input.
KINDS = ("w", "a")
# With at most this many layers, the optimum is exact; with more, it is within the relative GAP. The
# solver also stops at an absolute gap of 1e-6, so costs get a large mean (EXACT_SCALE) where the
# optimum is to be exact.
EXACT_LAYERS = 64
GAP, SCALE, EXACT_SCALE = 1e-3, 1.0, 1e3
# The solver tolerates a budget that is exceeded by 1e-6. We tighten such a budget by slightly more.
TIGHTER = 2e-6


@dataclass(frozen=True)
class LayerCosts:
    """The choices of one layer in the integer program.

    Attributes:
        costs: choice → cost.
        parameters: number of elements of the weight.
        macs: multiply-accumulates per image.
        counted: whether the layer counts in the averages.
    """

    costs: Mapping[LayerChoice, float]
    parameters: int
    macs: int
    counted: bool = True

    def share(self, kind: str) -> int:
        """Return the layer's weight in the average of a kind; 0 if it does not count."""
        if not self.counted:
            return 0
        return self.parameters if kind == "w" else self.macs


@dataclass(frozen=True)
class Limit:
    """An upper limit: the sum of the layers' amounts / divisor + offset ≤ most.

    Attributes:
        name: what messages call the limit.
        amounts: layer → choice → amount; whole numbers are added exactly.
    """

    name: str
    amounts: Amounts
    most: float
    divisor: float = 1
    offset: float = 0

    def value(self, choices: Mapping[str, LayerChoice]) -> float:
        """Return what a plan takes of this budget."""
        return total_cost(self.amounts, choices) / self.divisor + self.offset

    @property
    def ends(self) -> tuple[float, float]:
        """Return the smallest and the largest value that any plan has."""
        smallest, largest = (
            {name: end(amounts, key=amounts.__getitem__) for name, amounts in self.amounts.items()}
            for end in (min, max)
        )
        return self.value(smallest), self.value(largest)


def average_bits(
    layers: Mapping[str, LayerCosts], choices: Mapping[str, LayerChoice], kind: str
) -> float:
    """Return the average bit width of weights (``w``) or inputs (``a``) of the counted layers."""
    place = KINDS.index(kind)
    total = sum(layer.share(kind) for layer in layers.values())
    spent = sum(layer.share(kind) * choices[name].bits[place] for name, layer in layers.items())
    return spent / total if total else 0.0


def combine_costs(
    errors: Mapping[Key, float], distances: Mapping[Key, float], weight: float
) -> dict[Key, float]:
    """Return λ·error + (1 - λ)·distance, each divided by its mean over all keys (paper, Sec. 3).

    Args:
        errors, distances: values with the same keys, finite and not negative.
        weight: λ, 0 to 1.

    Raises:
        QuantFaceError: λ is outside [0, 1].
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise QuantFaceError(f"lambda: found {weight!r}, allowed are numbers from 0 to 1")
    error_mean, distance_mean = (
        float(np.mean(list(values.values()) or [0.0])) or 1.0 for values in (errors, distances)
    )
    return {
        key: weight * errors[key] / error_mean + (1 - weight) * distances[key] / distance_mean
        for key in errors
    }


def total_cost(costs: Amounts, choices: Mapping[str, LayerChoice]) -> float:
    """Return the sum of the costs, or of other amounts, of a plan."""
    # The result does not depend on the order of the layers.
    return math.fsum(costs[name][choice] for name, choice in choices.items())


def allocate(costs: Amounts, limits: Sequence[Limit] = ()) -> dict[str, LayerChoice]:
    """Make one choice per layer at the least total cost (paper, Sec. 3).

    HiGHS minimizes Σ c(i, x)·z(i, x) subject to Σ_x z(i, x) = 1 and the limits, with z binary. The
    solution is exact for up to 64 layers, and within 0.1 % of the least cost for more. Choices that
    another one beats in everything are left out.

    Args:
        costs: layer → choice → cost.
        limits: with the same layers and choices.

    Returns:
        layer → choice.

    Raises:
        QuantFaceError: there are no layers, a layer has no choices, no plan meets a limit (the
            message names the smallest and the largest possible value) or all of them together, or
            the solver fails.
    """
    if not costs:
        raise QuantFaceError("bit allocation: there is no layer to allocate bits to")
    for name, row in costs.items():
        if not row:
            raise QuantFaceError(f"layer {name}: found no choice, at least one is wanted")
        for choice, cost in row.items():
            if not math.isfinite(cost):
                raise QuantFaceError(f"layer {name}: the cost of {choice} is {cost}")
    for limit in limits:
        _check_feasible(limit)
    offered = contenders(costs, limits)
    tightened = [limit.most for limit in limits]
    while True:
        choices = _run_solver(costs, offered, limits, tightened)
        late = [limit.value(choices) > limit.most for limit in limits]
        if not any(late):
            return choices
        tightened = [
            most - TIGHTER * _scale(limit) / limit.divisor if is_late else most
            for limit, most, is_late in zip(limits, tightened, late, strict=True)
        ]


def _check_feasible(limit: Limit) -> None:
    smallest, largest = limit.ends
    if smallest > limit.most:
        raise QuantFaceError(
            f"{limit.name}: found {limit.most:g}, the smallest feasible one is "
            f"{math.ceil(smallest * 10**4) / 10**4:.4f}, and the largest that has an effect is "
            f"{math.ceil(largest * 10**4) / 10**4:.4f}"
        )


def contenders(costs: Amounts, limits: Sequence[Limit]) -> dict[str, list[LayerChoice]]:
    """Return the choices of each layer that no other one beats in cost and in all amounts.

    Of equal choices, the first one is kept.
    """
    return {name: _unbeaten(name, offered, limits) for name, offered in costs.items()}


def _unbeaten(
    name: str, offered: Mapping[LayerChoice, float], limits: Sequence[Limit]
) -> list[LayerChoice]:
    choices = list(offered)
    table = np.array([[offered[x], *(limit.amounts[name][x] for limit in limits)] for x in choices])
    # A pair (i, j) is true if choice j takes at most as much as choice i everywhere.
    at_most = (table[None] <= table[:, None]).all(-1)
    # Of equal choices, the first one counts.
    beaten = np.any(at_most & ~(at_most.T & np.triu(np.ones_like(at_most))), axis=1)
    return [choices[place] for place in np.flatnonzero(~beaten)]


def _scale(limit: Limit) -> float:
    """Return the magnitude of a layer's amounts; the solver is exact with numbers of about 1."""
    largest = [max(amounts.values()) for amounts in limit.amounts.values()]
    return sum(largest) / len(largest) or 1.0


def _run_solver(
    costs: Amounts,
    offered: Mapping[str, Sequence[LayerChoice]],
    limits: Sequence[Limit],
    tightened: Sequence[float],
) -> dict[str, LayerChoice]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    pairs = [(name, choice) for name, choices in offered.items() for choice in choices]
    owner = np.repeat(np.arange(len(offered)), [len(x) for x in offered.values()])
    cost = np.array([costs[name][choice] for name, choice in pairs])
    exact = len(offered) <= EXACT_LAYERS
    cost = cost * ((EXACT_SCALE if exact else SCALE) / (np.abs(cost).mean() or 1.0))
    one_hot = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    constraints = [LinearConstraint(one_hot, 1, 1)]
    for limit, most in zip(limits, tightened, strict=True):
        scale = _scale(limit)
        spent = np.array([limit.amounts[name][choice] for name, choice in pairs]) / scale
        upper = (most - limit.offset) * limit.divisor / scale
        constraints.append(LinearConstraint(csr_array(spent[None]), ub=upper))
    result = milp(
        cost,
        integrality=np.ones_like(cost),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0 if exact else GAP},
    )
    if result.x is None:
        names = " and ".join(limit.name for limit in limits)
        raise QuantFaceError(f"bit allocation: no plan meets {names} together ({result.message})")
    return dict(pair for pair, chosen in zip(pairs, result.x > 0.5, strict=True) if chosen)
