"""Calibration by several processes: each sees its share of the batches, then all know everything.

What is merged equals what one process would have seen: extremes, histograms and crops are the same,
sums of squares but for the order in which float64 adds them. Histograms fit together since every
process has seen the first batch, which fixes their edges up to doublings. A value that lies on the
edge of a bin may be rounded into its neighbour where the histogram was doubled at another time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import frexp

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.observer import BINS, CROPS, widened
from quantface_arch.quant.nn.layers import QuantLayer

__all__ = ["check_mergeable", "merged"]

Statistics = Mapping[str, Tensor]


def check_mergeable(layers: Iterable[QuantLayer]) -> None:
    """Raise QuantFaceError for what depends on the order of the images, naming the layer."""
    for layer in layers:
        what = None
        if layer.activation_spec.range == "ema":
            what = "range ema, a moving average over the images in their order,"
        elif layer.weight_spec.rounding == "gptq":
            what = "rounding gptq, whose sums are too large to be exchanged,"
        if what:
            raise QuantFaceError(
                f"layer {layer.name}: {what} is not calibrated by several processes; "
                "run it without torchrun"
            )


def merged(name: str, parts: Sequence[Statistics]) -> dict[str, Tensor]:
    """One layer's statistics of all processes, as ``ActivationObserver.load_state_dict`` takes it.

    Args:
        name: of the layer, for messages.
        parts: what each process's observer gave as its ``state_dict``, by rank.

    Raises:
        QuantFaceError: histograms whose edges do not fit.
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
        "counts": torch.stack([_counts_at(name, part, reach) for part in seen]).sum(0),
        "reach": torch.tensor(reach, dtype=torch.float64),
        "calls": torch.stack([part["calls"] for part in seen]).amax(),
        "squares": torch.stack([part["squares"] for part in seen]).sum(0),
        "positions": torch.stack([part["positions"] for part in seen]).sum(),
        "samples": samples,
        "places": places,
    }


def _counts_at(name: str, part: Statistics, reach: float) -> Tensor:
    """A histogram over [-reach, reach]; one of zeros alone fits any."""
    counts, own = part["counts"], float(part["reach"])
    if own == 0:
        return counts
    mantissa, exponent = frexp(reach / own)
    if mantissa != 0.5:
        raise QuantFaceError(
            f"layer {name}: its first input was all zero, so that histograms of several processes "
            "do not fit; calibrate without torchrun, or with other images first"
        )
    for _ in range(exponent - 1):
        counts = widened(counts)
    assert counts.numel() == BINS
    return counts


def _first_crops(parts: Sequence[Statistics]) -> tuple[Tensor, Tensor]:
    """The crops that one process would have kept: the first ones, of the very first one's shape."""
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
