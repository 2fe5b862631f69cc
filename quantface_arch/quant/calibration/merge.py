"""Calibration by several processes: each sees its share of the batches, then all statistics merge.

The merged statistics equal those of a single process. Extremes, histograms and crops are the same;
sums of squares differ only by the order in which float64 adds them. Histograms can be added because
every process sees the first batch, which fixes their edges up to doublings. A value on the edge of
a bin may be counted in the neighbouring bin if its histogram was doubled at another time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import frexp

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.observer import CROPS, widened
from quantface_arch.quant.nn.layers import QuantLayer

__all__ = ["check_mergeable", "merged"]

Statistics = Mapping[str, Tensor]


def check_mergeable(layers: Iterable[QuantLayer]) -> None:
    """Raise QuantFaceError, naming the layer, if several processes cannot share a calibration."""
    for layer in layers:
        what = None
        if layer.activation_spec.range == "ema":
            what = "range ema, a moving average over the images in their order,"
        elif layer.weight_spec.rounding == "gptq":
            what = "rounding gptq, whose sums are too large to be exchanged,"
        if what:
            raise QuantFaceError(
                f"layer {layer.name}: {what} cannot be calibrated by several processes; "
                "run without torchrun"
            )


def merged(name: str, parts: Sequence[Statistics]) -> dict[str, Tensor]:
    """Merge a layer's statistics of all processes for ``ActivationObserver.load_state_dict``.

    Args:
        name: the layer's name, for messages.
        parts: the ``state_dict`` of each process's observer, by rank.

    Raises:
        QuantFaceError: the edges of the histograms do not match.
    """
    seen = [part for part in parts if part["minimum"].numel()]
    if not seen:
        return dict(parts[0])
    samples, places = _first_crops(seen)
    reach = max(float(part["reach"]) for part in seen)
    return {
        **seen[0],
        "minimum": torch.stack([part["minimum"] for part in seen]).amin(0),
        "maximum": torch.stack([part["maximum"] for part in seen]).amax(0),
        **{
            key: torch.stack([_counts_at(name, part, key, reach) for part in seen]).sum(
                0, dtype=seen[0][key].dtype
            )
            for key in ("counts", "channel_counts")
        },
        "reach": torch.tensor(reach, dtype=torch.float64),
        "calls": torch.stack([part["calls"] for part in seen]).amax(),
        "squares": torch.stack([part["squares"] for part in seen]).sum(0),
        "positions": torch.stack([part["positions"] for part in seen]).sum(),
        "samples": samples,
        "places": places,
    }


def _counts_at(name: str, part: Statistics, key: str, reach: float) -> Tensor:
    """Return histograms over [-reach, reach]; one that holds only zeros fits any reach."""
    counts, own = part[key], float(part["reach"])
    if own == 0:
        return counts
    mantissa, exponent = frexp(reach / own)
    if mantissa != 0.5:
        raise QuantFaceError(
            f"layer {name}: its first input was all zero, so the histograms of the processes "
            "do not match; calibrate without torchrun, or begin with other images"
        )
    for _ in range(exponent - 1):
        counts = widened(counts)
    return counts


def _first_crops(parts: Sequence[Statistics]) -> tuple[Tensor, Tensor]:
    """Return the crops that a single process would have kept.

    They are the first ones that have the shape of the very first.
    """
    crops = [
        (int(place), crop)
        for part in parts
        for place, crop in zip(part["places"], part["samples"], strict=True)
    ]
    if not crops:
        return parts[0]["samples"], parts[0]["places"]
    crops.sort(key=lambda item: item[0])
    fitting = [item for item in crops if item[1].shape == crops[0][1].shape][:CROPS]
    places, kept = zip(*fitting, strict=True)
    return torch.stack(kept), torch.tensor(places)
