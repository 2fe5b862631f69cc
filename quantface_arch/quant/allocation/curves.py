"""The least cost of the network for a range of budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantface_arch.quant.allocation.solve import Amounts, Limit, allocate, total_cost
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["Curve", "curve_of"]

# A curve is solved for this many budgets.
BUDGETS = 25


@dataclass(frozen=True)
class Curve:
    """What plans of least cost take of a budget, and what they cost.

    Attributes:
        unit: the budget's unit, ``megabytes`` or ``milliseconds``.
        values: what each plan takes, rising.
        costs: its total cost, falling.
        chosen: value and cost of the plan that was chosen.
    """

    unit: str
    values: tuple[float, ...]
    costs: tuple[float, ...]
    chosen: tuple[float, float]


def curve_of(
    unit: str,
    costs: Amounts,
    others: Sequence[Limit],
    limit: Limit,
    chosen: Mapping[str, LayerChoice],
) -> Curve:
    """Solve the integer program for budgets from the smallest feasible to the largest useful one.

    Args:
        costs: layer → choice → cost.
        others: limits that always hold.
        limit: the budget; its ``most`` is not read.
        chosen: a plan to mark.

    Raises:
        QuantFaceError: see ``allocate``.
    """
    best, smallest = (limit.value(allocate(x, others)) for x in (costs, limit.amounts))
    found: dict[float, float] = {}
    least = float("inf")
    for most in np.linspace(smallest, max(best, smallest), BUDGETS):
        plan = allocate(costs, [*others, replace(limit, most=float(most))])
        cost = total_cost(costs, plan)
        # The solver may stop short of the least cost by its tolerance.
        if cost < least:
            least = found[limit.value(plan)] = cost
    mark = (limit.value(chosen), total_cost(costs, chosen))
    return Curve(unit, tuple(found), tuple(found.values()), mark)
