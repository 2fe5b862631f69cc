"""Solve the integer program under a budget of time, and check the plan by measuring it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.solve import (
    Amounts,
    Limit,
    allocate,
    contenders,
    total_cost,
)
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["TOLERANCE", "Clock", "TimedPlans"]

Plan = dict[str, LayerChoice]
# A measured time may exceed the budget by this share, and miss the prediction by it.
TOLERANCE = 0.05
# Two sums of times are far apart from this ratio on, so that noise hardly turns the line.
FAR = 1.1
# The program is solved at most this often.
ATTEMPTS = 5


class Clock(Protocol):
    """Measures milliseconds of one image."""

    def work(self, choice: LayerChoice) -> tuple[int, ...]:
        """Return how much of each kind of work a choice adds to a layer's product.

        Choices of equal work take equally long, and one of at most as much of every kind takes at
        most as long.
        """
        ...

    def layers(self, offered: Mapping[str, Sequence[LayerChoice]]) -> Amounts:
        """Return layer → choice → milliseconds of the layer alone."""
        ...

    def network(self, plan: Mapping[str, LayerChoice]) -> float:
        """Return the milliseconds of the whole network."""
        ...


class TimedPlans:
    """Plans under budgets of time, from one measurement of the layers.

    The network's time is predicted by a line over the sum of the layers' times, each measured
    alone. The line goes through the plan that was measured last, and through the fastest plan or,
    if the two sums are too close, through zero.

    Attributes:
        costs: the costs of the choices that were measured.
        times: their milliseconds.
        fastest: the fastest plan.
        least: its milliseconds, measured.
        measured: milliseconds of the whole network, by plan in the order of the layers.

    Args:
        costs: layer → choice → cost; choices are not measured if another one is at least as good
            in cost, work and all limits.
        limits: the other limits.
        clock: measures.

    Raises:
        QuantFaceError: see ``allocate``.
    """

    def __init__(self, costs: Amounts, limits: Sequence[Limit], clock: Clock) -> None:
        self.limits, self.clock = limits, clock
        offered = contenders(costs, [*limits, *_limits_of_work(costs, clock)])
        self.costs = {n: {x: costs[n][x] for x in choices} for n, choices in offered.items()}
        self.times = clock.layers(offered)
        self.fastest = allocate(self.times, limits)
        self.least = self.clock.network(self.fastest)
        self.least_sum = total_cost(self.times, self.fastest)
        self.slope, self.offset = self.least / self.least_sum, 0.0
        self.measured = {tuple(self.fastest.values()): self.least}

    def measure(self, plan: Plan) -> float:
        """Return a plan's time in milliseconds, measured once, and draw the line through it."""
        key = tuple(plan.values())
        if key not in self.measured:
            self.measured[key] = self.clock.network(plan)
        found, total = self.measured[key], total_cost(self.times, plan)
        self.slope, self.offset = found / total, 0.0
        if total > FAR * self.least_sum and found > self.least:
            self.slope = (found - self.least) / (total - self.least_sum)
            self.offset = found - self.slope * total
        return found

    def limit(self, milliseconds: float) -> Limit:
        """Return a budget of time as a limit of the predicted time."""
        return Limit("budget milliseconds", self.times, milliseconds, 1 / self.slope, self.offset)

    def solve(self, milliseconds: float) -> tuple[Plan, float]:
        """Return the plan of least cost within a budget, and its measured time.

        A time within 5 % of the budget meets it. Where none of the measured plans is also within
        5 % of its prediction, the best of those that meet the budget is returned, with a warning.

        Raises:
            QuantFaceError: the fastest plan does not meet the budget.
        """
        most = milliseconds * (1 + TOLERANCE)
        if self.least > most:
            largest = self.limit(milliseconds).ends[1]
            raise QuantFaceError(
                f"budget milliseconds: found {milliseconds:g}, the smallest feasible one is "
                f"{self.least:.1f}, measured, and the largest that has an effect is about "
                f"{largest:.1f}"
            )
        best, time = self.fastest, self.least
        for _ in range(ATTEMPTS):
            # The fastest plan is always allowed.
            limit = self.limit(max(milliseconds, self.limit(0.0).value(self.fastest)))
            plan = allocate(self.costs, [*self.limits, limit])
            predicted = limit.value(plan)
            found = self.measure(plan)
            if found <= most and total_cost(self.costs, plan) <= total_cost(self.costs, best):
                best, time = plan, found
            if found <= most and abs(found / predicted - 1) <= TOLERANCE:
                return plan, found
        self.measure(best)
        warnings.warn(
            f"budget milliseconds: {ATTEMPTS} plans were measured, and none took within "
            f"{TOLERANCE:.0%} of the time that its layers predict; the best one that meets "
            f"{milliseconds:g} takes {time:.1f}",
            stacklevel=2,
        )
        return best, time


def _limits_of_work(costs: Amounts, clock: Clock) -> list[Limit]:
    """Return the kinds of work as limits without an end."""
    work = {choice: clock.work(choice) for offered in costs.values() for choice in offered}
    return [
        Limit("work", {n: {x: work[x][kind] for x in y} for n, y in costs.items()}, math.inf)
        for kind in range(len(next(iter(work.values()))))
    ]
