"""Plots of a bit map: the choices along the network, their costs, and other budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quantface_arch.quant.allocation.curves import Curve
    from quantface_arch.quant.allocation.solve import LayerCosts
    from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["draw_allocation", "draw_curves"]

# The bit widths of a layer, in the order of ``LayerChoice.bits``.
TITLES = ("weight", "activation")
# Parts of a network with fewer layers get no label.
SMALLEST_PART = 3


def draw_allocation(
    path: Path,
    layers: Mapping[str, LayerCosts],
    choices: Mapping[str, LayerChoice],
    title: str,
) -> None:
    """Draw the choices of the layers along the network, and the costs of bit widths, as PNG.

    Args:
        path: the image to write.
        layers: costs by name, in the order in which the layers run.
        choices: layer → choice.
        title: the title of the plot.
    """
    from matplotlib.figure import Figure

    names = list(layers)
    free = [
        place
        for place in range(len(TITLES))
        if any(len({choice.bits[place] for choice in x.costs}) > 1 for x in layers.values())
    ]
    branches = any(choice.balance for choice in choices.values())
    width = max(8.0, min(18.0, len(names) / 12))
    rows = 1 + branches + len(free)
    figure = Figure(figsize=(width, 3.5 + 2.5 * (rows - 1)), layout="constrained")
    top, *below = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for place, label in enumerate(TITLES):
        widths = [choices[name].bits[place] for name in names]
        top.step(range(len(names)), widths, where="mid", linewidth=1, label=label)
    top.set(ylabel="bits", yticks=range(2, 9), ylim=(1.7, 8.3), title=title)
    top.legend(loc="upper center", ncols=2)
    if branches:
        _draw_branches(below[0], [choices[name] for name in names])
    for axes, place in zip(below[branches:], free, strict=True):
        _draw_costs(axes, layers, choices, place)
    for axes in (top, *below):
        axes.grid(axis="y", alpha=0.4)
        _mark_parts(axes, names, labelled=axes is top)
    (below or [top])[-1].set(
        xlabel="layer, in the order of execution", xlim=(-0.5, len(names) - 0.5)
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draw the least cost over what a plan takes, one plot per budget, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * len(curves), 4.5), layout="constrained")
    row = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, curve in zip(row, curves, strict=True):
        axes.plot(curve.values, curve.costs, ".-", label="least cost")
        axes.plot(*curve.chosen, "o", mfc="none", mec="black", label="chosen")
        axes.set(xlabel=curve.unit, ylabel="quality lost (sum of the layers' costs)", yscale="log")
        axes.grid(alpha=0.4, which="both")
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_branches(axes: Axes, choices: Sequence[LayerChoice]) -> None:
    """Draw the rank of every layer, with a marker for each kind of balancing."""
    for kind in dict.fromkeys(choice.balance or "none" for choice in choices):
        places = [p for p, choice in enumerate(choices) if (choice.balance or "none") == kind]
        ranks = [choices[place].rank or 0 for place in places]
        axes.plot(places, ranks, ".", markersize=5, label=kind)
    axes.set(ylabel="rank of the branches")
    axes.legend(ncols=4, fontsize="small", title="balancing", title_fontsize="small")


def _draw_costs(
    axes: Axes,
    layers: Mapping[str, LayerCosts],
    choices: Mapping[str, LayerChoice],
    place: int,
) -> None:
    """Draw the cost of every candidate bit width on a log scale, with a ring around the choice.

    The rest of a layer's choice is the one that was made, as far as it is offered.
    """
    candidates: list[dict[int, float]] = []
    for name, layer in layers.items():
        made = choices[name]
        alike = {
            choice.bits[place]: cost
            for choice, cost in layer.costs.items()
            if choice.bits[1 - place] == made.bits[1 - place] and choice[2:] == made[2:]
        }
        candidates.append(alike)
    for width in sorted({b for costs in candidates if len(costs) > 1 for b in costs}):
        places = [p for p, costs in enumerate(candidates) if len(costs) > 1 and width in costs]
        values = [candidates[place][width] for place in places]
        axes.plot(places, values, ".", markersize=4, label=f"{width} bits")
    chosen = [
        (p, costs[choices[name].bits[place]])
        for p, (name, costs) in enumerate(zip(layers, candidates, strict=True))
        if len(costs) > 1
    ]
    if chosen:
        axes.plot(
            *zip(*chosen, strict=True), "o", mfc="none", mec="black", markersize=5, label="chosen"
        )
    axes.set(yscale="log", ylabel=f"cost of the {TITLES[place]} bit width")
    axes.legend(ncols=4, fontsize="small")


def _mark_parts(axes: Axes, names: Sequence[str], labelled: bool) -> None:
    """Separate the parts of the network by lines, and label the large ones."""
    start = 0
    for part, group in groupby(names, key=lambda name: ".".join(name.split(".")[:2])):
        length = len(list(group))
        axes.axvline(start - 0.5, color="grey", linewidth=0.5)
        if labelled and length >= SMALLEST_PART:
            axes.text(start, 1.8, part, rotation=90, fontsize="x-small", va="bottom", color="grey")
        start += length
