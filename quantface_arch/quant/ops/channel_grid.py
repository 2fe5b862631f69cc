"""Find the grid of an input whose channels share a scale, but have their own zero points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops.quantizer import grid
from quantface_arch.quant.ops.ranges import SHRINKS

__all__ = ["channel_grid", "zero_point_limits"]

# The integers q - zero point of all channels fit into int8. The same holds for the zero points.
LARGEST_INTEGER = 127


def zero_point_limits(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest zero point that a channel may have."""
    return grid(bits, symmetric=False)[1] - LARGEST_INTEGER, LARGEST_INTEGER


def channel_grid(
    counts: Tensor, reach: float, spec: QuantSpec, importance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero points with the least rounding error of an input.

    The scale is one of some fractions of that which clips nothing. At each scale, every channel has
    the zero point that is best for its own values.

    Args:
        counts: integers (channels, bins), a histogram for each channel over [-reach, reach].
        reach: outer edge of the histograms.
        spec: an asymmetric quantizer of fewer than 8 bits.
        importance: float (channels,), the weight of each channel's errors.

    Returns:
        scale, float32 (), and zero points, whole float32 (channels,).
    """
    used = counts.sum(0).nonzero().squeeze(1)
    _, levels = grid(spec.bits, symmetric=False)
    if reach == 0 or not used.numel():
        return torch.ones(()), torch.zeros(len(counts))
    bins = counts.shape[1]
    values = (used.double() + (0.5 - bins / 2)) * (2 * reach / bins)
    weights = counts[:, used].double()
    # At this scale nothing is clipped: every channel's values fit into its levels and into int8.
    largest = max(
        _widest(weights > 0, values) / levels, float(values.abs().max()) / LARGEST_INTEGER
    )
    least = math.inf
    scale, zero_point = largest, torch.zeros(len(counts), dtype=torch.float64)
    for fraction in SHRINKS:
        step = largest * fraction
        lowest, errors = _window_errors(values, step, levels, spec.power)
        error, place = (weights @ errors.T).min(1)
        total = float(error @ importance.to(error))
        if total < least:
            least, scale, zero_point = total, step, -lowest[place]
    return torch.tensor(scale, dtype=torch.float32), zero_point.float()


def _widest(filled: Tensor, values: Tensor) -> float:
    """Return the largest distance between two values of the same channel."""
    infinity = torch.full_like(values, torch.inf)
    highest = torch.where(filled, values, -infinity).amax(1)
    lowest = torch.where(filled, values, infinity).amin(1)
    return float((highest - lowest).clamp(min=0).max())


def _window_errors(values: Tensor, step: float, levels: int, power: float) -> tuple[Tensor, Tensor]:
    """Return the lowest integer of every window of levels, and the error of each value in it.

    Returns:
        float64 (windows,) and (windows, values).
    """
    integers = (values / step).round()
    first = max(int(integers.min()), -LARGEST_INTEGER)
    last = max(min(int(integers.max()) - levels, LARGEST_INTEGER - levels), first)
    lowest = torch.arange(first, last + 1, dtype=torch.float64)
    rounded = integers.clamp(min=lowest[:, None]).clamp(max=lowest[:, None] + levels)
    return lowest, (rounded * step - values).abs().pow(power)
