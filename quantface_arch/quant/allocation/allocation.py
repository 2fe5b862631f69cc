"""Solve a bit allocation from measured sensitivities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.costs import (
    AVERAGES,
    branch_limit,
    layer_costs,
    limits_of,
    size_limit,
)
from quantface_arch.quant.allocation.curves import Curve, curve_of
from quantface_arch.quant.allocation.sensitivity_file import Sensitivities
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.allocation.solve import LayerCosts, allocate, average_bits
from quantface_arch.quant.allocation.timed import Clock, TimedPlans
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["Allocation", "solve_allocation"]


@dataclass(frozen=True)
class Allocation:
    """The choices of all layers, and the costs from which they were made.

    Attributes:
        layers: costs by layer name.
        choices: layer → choice.
        bytes: predicted size of the checkpoint.
        milliseconds: measured time of an image; None without such a budget.
        curves: see ``solve_allocation``.
    """

    layers: Mapping[str, LayerCosts]
    choices: dict[str, LayerChoice]
    bytes: int
    milliseconds: float | None = None
    curves: tuple[Curve, ...] = ()

    @property
    def averages(self) -> dict[str, float]:
        """Return the average bit widths of weights and of inputs, rounded to 4 digits."""
        return {
            name: round(average_bits(self.layers, self.choices, kind), 4)
            for kind, name in AVERAGES.items()
        }

    def summary(self, path: Path) -> str:
        """Return lines with the averages, the layers per choice, the size and the time."""
        lines, choices = [f"{path}: {len(self.choices)} layers"], self.choices.values()
        for what, name in zip(("weights", "inputs"), AVERAGES.values(), strict=True):
            listed = _counted([getattr(choice, name) for choice in choices])
            lines.append(f"{what}: {self.averages[name]:.4f} bits on average ({listed})")
        for what, values in (
            ("ranks", [choice.rank or 0 for choice in choices]),
            ("balancing", [choice.balance for choice in choices]),
        ):
            if any(choice.balance for choice in choices):
                lines.append(f"{what}: {_counted(values)}")
        lines.append(f"checkpoint: about {self.bytes:,} bytes")
        if self.milliseconds is not None:
            lines.append(f"time: {self.milliseconds:.1f} milliseconds, measured")
        return "\n".join(lines)


def _counted(values: Sequence[object]) -> str:
    counts = sorted(Counter(map(str, values)).items())
    return ", ".join(f"{count} at {value}" for value, count in counts)


def solve_allocation(
    found: Sensitivities,
    settings: AllocationSettings,
    clock: Clock | None = None,
    curves: bool = False,
) -> Allocation:
    """Find the choices of least cost within the budget.

    Args:
        clock: measures times, for a budget of milliseconds.
        curves: solve for ranges of sizes and, with a clock, of times as well; the budget's averages
            of bit widths hold there, too.

    Raises:
        QuantFaceError: see ``layer_costs``, ``allocate`` and ``TimedPlans.solve``.
    """
    layers = layer_costs(found, settings)
    costs = {name: layer.costs for name, layer in layers.items()}
    limits, most = limits_of(found, layers, settings.budget), settings.budget.milliseconds
    if most is None or clock is None:
        timed, time, choices = None, None, allocate(costs, limits)
    else:
        timed = TimedPlans(costs, limits, clock)
        choices, time = timed.solve(most)
    size = size_limit(found, layers, 0.0)
    drawn = []
    if curves:
        averages = Budget(**{name: getattr(settings.budget, name) for name in AVERAGES.values()})
        others = [branch_limit(found, layers), *limits_of(found, layers, averages)]
        drawn = [curve_of("megabytes", costs, others, size, choices)]
        if timed is not None:
            drawn.append(curve_of("milliseconds", timed.costs, others, timed.limit(0.0), choices))
    total = round(size.value(choices) * 10**6)
    total += 0 if settings.ranks is not None else found.recipe_bytes
    return Allocation(layers, choices, total, time, tuple(drawn))
