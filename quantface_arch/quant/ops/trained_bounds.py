"""The grid of an input after training has moved its ends (LSQ+, Bhalgat et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops.channel_grid import zero_point_limits
from quantface_arch.quant.ops.quantizer import grid

__all__ = ["trained_grid"]


def trained_grid(
    scale: Tensor, zero_point: Tensor, bounds: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point after training; bounds of 0 change nothing.

    Zero points are rounded with a straight-through gradient, because zero must stay a level for
    zero padding to stay zero.

    Args:
        scale: float32 (), the calibrated scale.
        zero_point: float32 () or (channels,).
        bounds: logarithms of the factors by which the grid's two ends move, (2,) or, for both
            alike, (1,). If channels have their own zero points, the first is the logarithm of a
            factor by which every channel's range grows around its middle, and the others, if any,
            are added to the zero points: (1,) or (1 + channels,).
        spec: the input's quantizer.
    """
    qmin, qmax = grid(spec.bits, spec.symmetric)
    if spec.symmetric:
        return scale * bounds.mean().exp(), zero_point
    if spec.has_channel_zero_points:
        growth, middle = bounds[0].exp(), (qmin + qmax) / 2
        zero = middle - (middle - zero_point) / growth
        zero = zero + bounds[1:] if len(bounds) > 1 else zero
        zero = zero.clamp(*zero_point_limits(spec.bits))
    else:
        # We compute in units of the calibrated scale, so that bounds of 0 give exactly its grid.
        ends = torch.stack((qmin - zero_point, qmax - zero_point))
        low, high = (ends * bounds.exp()).unbind()
        growth = (high - low) / (qmax - qmin)
        zero = qmin - low / growth
    return scale * growth, zero + (zero.round() - zero).detach()
