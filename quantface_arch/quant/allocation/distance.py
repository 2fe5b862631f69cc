"""A perceptual distance that needs no downloaded weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.quant.nn.traits import traits_of

__all__ = ["network_distance", "ssim_distance"]

# Windows of 8×8, 4 pixels apart, are as informative as one at every pixel, and far cheaper.
WINDOW, STRIDE, SCALES = 8, 4, 3


def network_distance(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``ssim_distance`` for images in the range of a network's values."""
    low, high = traits_of(net).input_range
    return partial(ssim_distance, data_range=high - low)


def ssim_distance(pred: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Return 1 - SSIM (Wang et al., 2004), averaged over image sizes.

    Means and variances are computed in 8×8 windows, 4 pixels apart, at full, half and quarter size.
    Sizes below that of a window are left out. All is computed in float64.

    Args:
        pred, target: float (N, C, H, W), both sides at least 8.
        data_range: difference of the largest and the smallest value that an image can have.

    Returns:
        a scalar, 0 for equal images and at most 2.
    """
    pred, target = pred.double(), target.double()
    total, scales = pred.new_zeros(()), 0
    while scales < SCALES and min(pred.shape[-2:]) >= WINDOW:
        total, scales = total + 1 - _ssim(pred, target, data_range), scales + 1
        pred, target = F.avg_pool2d(pred, 2), F.avg_pool2d(target, 2)
    return total / scales


def _ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, STRIDE)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean()
