"""Plots of a quantized network: the inputs of its layers, and where its error arises."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import QuantLayer, quant_layers
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point
from quantface_arch.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_distribution", "draw_errors", "find_layers", "layer_errors", "sample_inputs"]

# A plot shows about this many values of one layer and one batch.
SAMPLES = 2**16
# Grids with more levels are drawn by their two ends only.
MOST_LEVELS = 64
# Parts of a network with fewer layers get no label of their own.
SMALLEST_PART = 3
# This many labels fit side by side below a plot.
MOST_FLAT = 8
PERCENTILE = 0.99
KINDS = {"none": "none", "scale": "scaled", "rotate": "rotated", "both": "scaled and rotated"}


def find_layers(model: nn.Module, names: Sequence[str]) -> dict[str, QuantLayer]:
    """Return quantized layers by name.

    Raises:
        QuantFaceError: there is no such layer. The message lists similar names.
    """
    known = {layer.name: layer for layer in quant_layers(model)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
            raise QuantFaceError(
                f"layer {name!r}: the model has no quantized layer with this name"
                + (f"; similar names are {', '.join(near)}" if near else "")
            )
    return {name: known[name] for name in names}


@torch.no_grad()
def _watch(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Tensor],
    see: Callable[[str, Tensor, Tensor], None],
) -> None:
    """Run a model, and call ``see`` (name, input, output) for each named layer as it runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, inputs, output: see(name, inputs[0], output)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()


def sample_inputs(
    teacher: nn.Module, layers: Mapping[str, QuantLayer], batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sample the inputs of layers in the full-precision network, before and after balancing.

    Args:
        teacher: the full-precision network, with modules of these names.
        layers: layers by name, see ``find_layers``.
        batches: images (n, 3, H, W) as the network takes them.

    Returns:
        name → two float32 tensors (positions, channels), with about 2¹⁶ values of each batch.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def see(name: str, x: Tensor, _: Tensor) -> None:
        layer = layers[name]
        pair = (x, layer.balance_input(x))
        rows = [t.movedim(layer.channel_axis, -1).flatten(0, -2).float() for t in pair]
        # An odd stride visits all columns of an image.
        stride = rows[0].numel() // SAMPLES | 1
        found[name].append((rows[0][::stride].clone(), rows[1][::stride].clone()))

    _watch(teacher, layers, batches, see)
    return {
        name: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
        for name, pairs in found.items()
    }


def draw_distribution(path: Path, layer: QuantLayer, before: Tensor, after: Tensor) -> None:
    """Draw a layer's input per channel, and as a histogram with its grid, as PNG.

    The upper row shows the unbalanced input, the lower row shows it after balancing (QuantFace,
    arXiv 2506.00820, Figure "overview"). Balancing equalizes the channels, and fewer values then
    fall outside the grid.

    Args:
        path: the image to write.
        layer: the quantized layer whose grid is drawn.
        before, after: float (positions, channels), see ``sample_inputs``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    spec = layer.activation_spec
    ends = (spec.bits, spec.symmetric)
    plain = ActivationObserver(layer.name, channel_axis=-1)
    plain(before)
    low, high = torch.tensor(plain.range(spec))
    raw = scale_and_zero_point(low, high, *ends)
    rows = (
        ("before balancing", before, raw),
        (
            f"after balancing ({KINDS[layer.balance.kind]})",
            after,
            tuple(end.detach() for end in layer.input_grid()),
        ),
    )
    axes = figure.subplots(2, 2, width_ratios=(3, 2))
    for (title, values, (scale, zero)), (channels, histogram) in zip(rows, axes, strict=True):
        _draw_channels(channels, title, values)
        # Channels with zero points of their own use different levels; all are drawn.
        lowest, highest = (level - zero for level in grid(*ends))
        levels = torch.arange(int(lowest.min()), int(highest.max()) + 1) * scale
        rounded = fake_quantize(values, scale, zero, *grid(*ends))
        _draw_histogram(histogram, values, levels, _decibels(values, rounded), spec.bits)
    figure.suptitle(f"{layer.name}: input, {before.shape[1]} channels, {spec.bits} bits")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_channels(axes: Axes, title: str, values: Tensor) -> None:
    magnitude = values.abs()
    largest = magnitude.amax(0)
    common = magnitude.sort(0).values[round(PERCENTILE * (len(values) - 1))]
    place = torch.arange(values.shape[1])
    axes.bar(place, largest, width=1.0, color="#9ecae1", label="largest")
    axes.bar(place, common, width=1.0, color="#08519c", label=f"{100 * PERCENTILE:g}th percentile")
    axes.axhline(float(largest.median()), color="#d62728", linewidth=1, label="median of largest")
    crest = float(largest.max() / largest.median().clamp(min=1e-12))
    axes.set_title(f"{title}: largest channel is {crest:.1f} × the median one", fontsize=10)
    axes.set(xlabel="input channel", ylabel="|activation|", xlim=(-0.5, values.shape[1] - 0.5))
    axes.legend(fontsize=8, loc="upper right")


def _draw_histogram(axes: Axes, values: Tensor, levels: Tensor, decibels: float, bits: int) -> None:
    axes.hist(values.flatten().numpy(), bins=200, color="#3182bd", log=True)
    drawn = levels if len(levels) <= MOST_LEVELS else levels[[0, -1]]
    for level in drawn.tolist():
        axes.axvline(level, color="#fd8d3c", linewidth=0.8, alpha=0.8)
    what = "its levels" if len(drawn) == len(levels) else "ends of its range"
    axes.set_title(
        f"on the {bits}-bit grid ({what} in orange): SQNR {decibels:.1f} dB", fontsize=10
    )
    axes.set(xlabel="activation", ylabel="values (of the sample)")
    axes.set_ylim(bottom=0.5)


def layer_errors(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Tensor]
) -> dict[str, float]:
    """Return the signal-to-quantization-noise ratio of every quantized layer's output, in dB.

    Each layer of the student receives the output of the student's earlier layers, so the ratios
    show how the error accumulates. Layers are in the order of execution.

    Args:
        teacher: the full-precision network, with modules of the student's names.
        student: the quantized network.
        batches: images (n, 3, H, W) as the networks take them.
    """
    names = [layer.name for layer in quant_layers(student)]
    sums: dict[str, list[float]] = {}
    for batch in batches:
        wanted: dict[str, list[Tensor]] = {name: [] for name in names}

        def remember(name: str, _: Any, output: Tensor, wanted: Any = wanted) -> None:
            wanted[name].append(_sample(output))

        def compare(name: str, _: Any, output: Tensor, wanted: Any = wanted) -> None:
            reference = wanted[name].pop(0)
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(reference.square().sum())
            pair[1] += float((_sample(output) - reference).square().sum())

        _watch(teacher, names, [batch], remember)
        _watch(student, names, [batch], compare)
    return {name: _ratio(signal, noise) for name, (signal, noise) in sums.items()}


def _sample(output: Tensor) -> Tensor:
    flat = output.detach().flatten()
    return flat[:: flat.numel() // SAMPLES | 1].double().cpu().clone()


def _decibels(reference: Tensor, found: Tensor) -> float:
    noise = (found.detach() - reference).double().square().sum()
    return _ratio(float(reference.double().square().sum()), float(noise))


def _ratio(signal: float, noise: float) -> float:
    """Return the SQNR in dB; outputs that agree to float32's precision count as 150 dB."""
    return float(10 * torch.tensor(max(signal, 1e-300) / max(noise, 1e-15 * signal)).log10())


def draw_errors(path: Path, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the error of each layer along the network, as PNG.

    Args:
        path: the image to write.
        errors: the label of a checkpoint → the result of ``layer_errors``.
    """
    from matplotlib.figure import Figure

    order = list(dict.fromkeys(name for values in errors.values() for name in values))
    figure = Figure(figsize=(max(8.0, min(16.0, len(order) / 9)), 5.5), layout="constrained")
    axes = figure.subplots()
    for label, values in errors.items():
        places = [place for place, name in enumerate(order) if name in values]
        axes.plot(places, [values[order[p]] for p in places], ".-", linewidth=1, label=label)
    _mark_parts(axes, order)
    axes.set(xlabel="layer, in the order of execution", ylabel="SQNR of the layer's output in dB")
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.grid(axis="y", alpha=0.4)
    axes.legend()
    axes.set_title("Error along the network, against full precision (higher is better)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _mark_parts(axes: Axes, order: Sequence[str]) -> None:
    """Shade every other part of a network (unet.mid_block, …) and label the parts."""
    place, shade = 0, False
    ticks, labels = [], []
    for part, members in groupby(order, key=lambda name: ".".join(name.split(".")[:2])):
        count = len(list(members))
        if count >= SMALLEST_PART:
            ticks.append(place + (count - 1) / 2)
            labels.append(part)
            shade = not shade
        if shade:
            axes.axvspan(place - 0.5, place + count - 0.5, color="0.93", zorder=0)
        place += count
    if not labels:
        ticks, labels = list(range(len(order))), list(order)
    crowded = len(labels) > MOST_FLAT
    turned = {"rotation": 30, "ha": "right"} if crowded else {}
    axes.set_xticks(ticks, labels, fontsize=8, **turned)
