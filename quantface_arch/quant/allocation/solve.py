"""Adaptive bit allocation: an integer program chooses the layers' bit widths under budgets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from quantface_arch.errors import QuantFaceError, check_keys
from quantface_arch.quant.config.specs import MAX_BITS, MIN_BITS

__all__ = ["KINDS", "Budget", "LayerCosts", "allocate", "average_bits", "combine_costs"]

Key = TypeVar("Key", bound=Hashable)

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
    """The costs of one layer in the integer program.

    Attributes:
        weights: candidate bit width of the weight → cost; a single candidate is a fixed bit width.
        activations: the same for the layer's input.
        parameters: number of elements of the weight.
        macs: multiply-accumulates per image.
        counted: whether the layer counts in the averages; the file's size counts every layer.
    """

    weights: Mapping[int, float]
    activations: Mapping[int, float]
    parameters: int
    macs: int
    counted: bool = True

    def candidates(self, kind: str) -> Mapping[int, float]:
        """Return bit width → cost for the weight (``w``) or the input (``a``)."""
        return self.weights if kind == "w" else self.activations

    def share(self, kind: str) -> int:
        """Return the layer's weight in the average of a kind; 0 if it does not count."""
        if not self.counted:
            return 0
        return self.parameters if kind == "w" else self.macs


@dataclass(frozen=True)
class Budget:
    """Upper limits; None means no limit.

    Attributes:
        activation_bits: average bit width of inputs, weighted by multiply-accumulates.
        weight_bits: average bit width of weights, weighted by parameters.
        bytes: size of the checkpoint.

    Raises:
        QuantFaceError: a limit is not a positive number.
    """

    activation_bits: float | None = None
    weight_bits: float | None = None
    bytes: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise QuantFaceError(
                    f"budget {item.name}: found {value!r}, a positive number is wanted"
                )

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Budget:
        """Return the budget of a mapping from YAML.

        Raises:
            QuantFaceError: a key is unknown, or a limit is not a positive number.
        """
        check_keys("budget", options, (item.name for item in fields(cls)))
        return cls(**options)


def average_bits(
    layers: Mapping[str, LayerCosts], bits: Mapping[str, tuple[int, int]], kind: str
) -> float:
    """Return the average bit width of weights (``w``) or inputs (``a``) of the counted layers."""
    place = KINDS.index(kind)
    total = sum(layer.share(kind) for layer in layers.values())
    spent = sum(layer.share(kind) * bits[name][place] for name, layer in layers.items())
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


def allocate(
    layers: Mapping[str, LayerCosts],
    budget: Budget,
    fixed_bytes: int = 0,
) -> dict[str, tuple[int, int]]:
    """Choose one bit width per layer and kind at the least total cost (paper, Sec. 3).

    We minimize Σ c(i, b)·z(i, b) subject to Σ_b z(i, b) = 1 and the budgets, with z binary. No
    budget couples weights with inputs, so HiGHS solves the two kinds one after the other. The
    solution is exact for up to 64 layers, and within 0.1 % of the least cost for more.

    Args:
        layers: costs by layer name.
        budget: upper limits.
        fixed_bytes: bytes of the checkpoint other than the packed weights.

    Returns:
        layer → (bits of the weight, bits of the input).

    Raises:
        QuantFaceError: there are no layers, a layer has no candidates, the smallest bit widths
            exceed a budget (the message names the smallest feasible one), or the solver fails.
    """
    if not layers:
        raise QuantFaceError("bit allocation: there is no layer to allocate bits to")
    chosen = {}
    for kind in KINDS:
        candidates = {name: layer.candidates(kind) for name, layer in layers.items()}
        for name, costs in candidates.items():
            _check_candidates(name, kind, costs)
        rows = _rows(list(layers.values()), kind, budget, fixed_bytes)
        chosen[kind] = _solve(candidates, rows)
    return {name: (chosen["w"][name], chosen["a"][name]) for name in layers}


def _check_candidates(name: str, kind: str, costs: Mapping[int, float]) -> None:
    what = f"layer {name}: {'weight' if kind == 'w' else 'activation'} widths"
    if not costs:
        raise QuantFaceError(f"{what}: found none, at least one is wanted")
    for bits, cost in costs.items():
        if not MIN_BITS <= bits <= MAX_BITS:
            raise QuantFaceError(f"{what}: found {bits}, allowed are {MIN_BITS} to {MAX_BITS}")
        if not math.isfinite(cost):
            raise QuantFaceError(f"{what}: the cost of {bits} bits is {cost}")


@dataclass(frozen=True)
class _Row:
    """One budget: Σ share[i]·bits[i] / divisor + offset ≤ limit, with integer shares."""

    name: str
    share: np.ndarray
    divisor: int
    offset: float
    limit: float

    def value(self, bits: Sequence[int]) -> float:
        return int(self.share @ np.asarray(bits)) / self.divisor + self.offset


def _rows(layers: Sequence[LayerCosts], kind: str, budget: Budget, fixed_bytes: int) -> list[_Row]:
    rows = []
    name = "weight_bits" if kind == "w" else "activation_bits"
    limit = getattr(budget, name)
    share = np.array([layer.share(kind) for layer in layers])
    if limit is not None and share.sum():
        rows.append(_Row(name, share, int(share.sum()), 0, limit))
    if kind == "w" and budget.bytes is not None:
        parameters = np.array([layer.parameters for layer in layers])
        rows.append(_Row("bytes", parameters, 8, fixed_bytes, budget.bytes))
    return rows


def _solve(candidates: Mapping[str, Mapping[int, float]], rows: Sequence[_Row]) -> dict[str, int]:
    least = [min(costs) for costs in candidates.values()]
    for row in rows:
        smallest = row.value(least)
        if smallest > row.limit:
            digits = 1 if row.name == "bytes" else 10**4
            raise QuantFaceError(
                f"budget {row.name}: found {row.limit:g}, the smallest feasible one is "
                f"{math.ceil(smallest * digits) / digits:.{0 if digits == 1 else 4}f}"
            )
    limits = [row.limit for row in rows]
    while True:
        bits = _run_solver(candidates, rows, limits)
        missed = [row.value(bits) > row.limit for row in rows]
        if not any(missed):
            return dict(zip(candidates, bits, strict=True))
        limits = [
            limit - TIGHTER * int(row.share.sum()) / row.divisor if late else limit
            for limit, row, late in zip(limits, rows, missed, strict=True)
        ]


def _run_solver(
    candidates: Mapping[str, Mapping[int, float]],
    rows: Sequence[_Row],
    limits: Sequence[float],
) -> list[int]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    owner = np.repeat(np.arange(len(candidates)), [len(costs) for costs in candidates.values()])
    bits = np.array([width for costs in candidates.values() for width in costs])
    cost = np.array([value for costs in candidates.values() for value in costs.values()])
    exact = len(candidates) <= EXACT_LAYERS
    cost = cost * ((EXACT_SCALE if exact else SCALE) / (np.abs(cost).mean() or 1.0))
    one_hot = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    constraints = [LinearConstraint(one_hot, 1, 1)]
    for row, limit in zip(rows, limits, strict=True):
        total = int(row.share.sum())
        spent = csr_array((row.share / total)[owner][None] * bits)
        upper = (limit - row.offset) * row.divisor / total
        constraints.append(LinearConstraint(spent, ub=upper))
    result = milp(
        cost,
        integrality=np.ones_like(cost),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0 if exact else GAP},
    )
    if not result.success:
        raise QuantFaceError(f"bit allocation: the solver found no solution: {result.message}")
    return [int(width) for width in bits[result.x > 0.5]]
