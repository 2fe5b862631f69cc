"""A plot of the bytes and operations in the parts of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.quant.config.specs import FLOAT_BITS
from quantface_arch.quant.cost.cost import REFERENCE_BITS, Cost
from quantface_arch.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_cost"]

# These map an attribute of a cost to its label and colour. The colours agree between the panels.
BYTES = {
    "weight_bytes": ("integer weights", "C0"),
    "step_bytes": ("their scales, input ranges", "C9"),
    "branch_bytes": ("branches", "C1"),
    "balance_bytes": ("balancing", "C2"),
    "float_bytes": ("floating point", "C7"),
}
OPERATIONS = {
    "main_operations": ("layers", "C0"),
    "branch_operations": ("branches", "C1"),
    "balance_operations": ("balancing", "C2"),
}
PRODUCTS = "attention and other products\n(floating point, not in the sums)"


def draw_cost(path: Path, parts: Mapping[str, Cost], title: str) -> None:
    """Draw the bytes and operations of each part of a network as a PNG image of stacked bars.

    Args:
        path: the image to write.
        parts: the cost of each part, in the order of execution.
        title: the title of the plot.
    """
    from matplotlib.figure import Figure

    height = 2.6 + 0.38 * len(parts)
    figure = Figure(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    costs = list(parts.values())
    ends = _stack(left, costs, BYTES, 1e6)
    left.set(xlabel="size in the checkpoint, MB", ylabel="part of the network")
    _label(left, ends)
    ends = _stack(right, costs, OPERATIONS, 1e9)
    products = [c.product_macs * FLOAT_BITS / REFERENCE_BITS / 1e9 for c in costs]
    if any(products):
        places = range(len(costs))
        style = {"color": "none", "edgecolor": "C7", "hatch": "///"}
        right.barh(places, products, left=ends, label=PRODUCTS, **style)
    _label(right, [end + more for end, more in zip(ends, products, strict=True)], ends)
    right.set(xlabel=f"operations per image, G (a {REFERENCE_BITS}-bit one counts as 1)")
    left.set_yticks(range(len(parts)), list(parts))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.4)
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _stack(
    axes: Axes, costs: Sequence[Cost], kinds: Mapping[str, tuple[str, str]], unit: float
) -> list[float]:
    """Stack the bars of every kind and return where they end."""
    ends = [0.0] * len(costs)
    for attribute, (label, colour) in kinds.items():
        values = [getattr(cost, attribute) / unit for cost in costs]
        if any(values):
            axes.barh(range(len(costs)), values, left=ends, label=label, color=colour)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    return ends


def _label(axes: Axes, places: Sequence[float], values: Sequence[float] | None = None) -> None:
    """Write the value of each bar next to its end."""
    for row, (place, value) in enumerate(zip(places, values or places, strict=True)):
        axes.annotate(
            f"{value:.3g}",
            (place, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
