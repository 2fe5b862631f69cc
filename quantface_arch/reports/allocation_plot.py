"""A plot of a bit map: the bit widths along the network, and the costs that led to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quantface_arch.quant.allocation.solve import LayerCosts

__all__ = ["draw_allocation"]

TITLES = {"w": "weight", "a": "activation"}
# Parts of a network with fewer layers get no label.
SMALLEST_PART = 3


def draw_allocation(
    path: Path, layers: Mapping[str, LayerCosts], bits: Mapping[str, tuple[int, int]], title: str
) -> None:
    """Draw the bit widths of weights and activations along the network, and their costs, as PNG.

    Args:
        path: the image to write.
        layers: costs by name, in the order in which the layers run.
        bits: layer → (bits of the weight, bits of the input).
        title: the title of the plot.
    """
    from matplotlib.figure import Figure

    names = list(layers)
    free = [kind for kind in "wa" if any(len(x.candidates(kind)) > 1 for x in layers.values())]
    width = max(8.0, min(18.0, len(names) / 12))
    figure = Figure(figsize=(width, 3.5 + 2.5 * len(free)), layout="constrained")
    top, *below = figure.subplots(1 + len(free), 1, sharex=True, squeeze=False)[:, 0]
    for place, kind in enumerate("wa"):
        widths = [bits[name][place] for name in names]
        top.step(range(len(names)), widths, where="mid", linewidth=1, label=TITLES[kind])
    top.set(ylabel="bits", yticks=range(2, 9), ylim=(1.7, 8.3), title=title)
    top.legend(loc="upper center", ncols=2)
    for axes, kind in zip(below, free, strict=True):
        _draw_costs(axes, layers, bits, kind)
    for axes in (top, *below):
        axes.grid(axis="y", alpha=0.4)
        _mark_parts(axes, names, labelled=axes is top)
    (below or [top])[-1].set(
        xlabel="layer, in the order of execution", xlim=(-0.5, len(names) - 0.5)
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_costs(
    axes: Axes, layers: Mapping[str, LayerCosts], bits: Mapping[str, tuple[int, int]], kind: str
) -> None:
    """Draw the cost of every candidate bit width on a log scale, with a ring around the choice."""
    items = list(layers.items())
    candidates = [layer.candidates(kind) for _, layer in items]
    for width in sorted({b for costs in candidates if len(costs) > 1 for b in costs}):
        places = [p for p, costs in enumerate(candidates) if len(costs) > 1 and width in costs]
        values = [candidates[place][width] for place in places]
        axes.plot(places, values, ".", markersize=4, label=f"{width} bits")
    chosen = [
        (place, costs[bits[name][0 if kind == "w" else 1]])
        for place, ((name, _), costs) in enumerate(zip(items, candidates, strict=True))
        if len(costs) > 1
    ]
    axes.plot(
        *zip(*chosen, strict=True), "o", mfc="none", mec="black", markersize=5, label="chosen"
    )
    axes.set(yscale="log", ylabel=f"cost of the {TITLES[kind]} bit width")
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
