"""Round the factors of a low-rank branch, each component to its own symmetric grid.

Component k of the branch is the product of down's row k and up's column k, so a scale per component
in each factor costs little. A rounded factor determines its own grid: nothing but the integers and
the scales has to be kept (LoRaQ, Bouquet et al., arXiv 2604.18117, rounds the branch as well).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantface_arch.quant.config.specs import FLOAT_BITS
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point

__all__ = ["factor_scale", "per_component", "rounded_factors"]


def rounded_factors(down: Tensor, up: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return both factors on their grids, with straight-through gradients.

    Rounded factors are returned as they are, bit by bit.

    Args:
        down: float (r, Cin, *taps).
        up: float (Cout, r).
        bits: 2 to 8; 16 returns the factors unchanged.
    """
    if bits == FLOAT_BITS:
        return down, up
    return _rounded(down, 0, bits), _rounded(up, 1, bits)


def _rounded(factor: Tensor, axis: int, bits: int) -> Tensor:
    scale = per_component(factor_scale(factor, axis, bits), factor, axis)
    return fake_quantize(factor, scale, torch.zeros_like(scale), *grid(bits, symmetric=True))


@torch.no_grad()
def factor_scale(factor: Tensor, axis: int, bits: int) -> Tensor:
    """Return the scale of each component's grid, float32 (r,).

    Args:
        axis: the axis of the components, 0 of ``down`` and 1 of ``up``.
    """
    # In float32, dividing a scale's largest value by 2^k - 1 gives exactly that scale again.
    most = factor.movedim(axis, 0).flatten(1).abs().amax(1)
    return scale_and_zero_point(-most, most, bits, symmetric=True)[0]


def per_component(scale: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Reshape the scales of ``factor_scale`` so that they broadcast against the factor."""
    return scale.view(-1, *[1] * (factor.ndim - 1)) if axis == 0 else scale
