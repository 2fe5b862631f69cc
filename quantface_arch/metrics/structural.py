"""Structural similarity at several scales and in Haar wavelets, by the ``piq`` package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError
from quantface_arch.metrics.tensors import as_tensors

__all__ = ["calculate_quantface_haarpsi", "calculate_quantface_ms_ssim"]

# MS-SSIM must have an 11×11 window at the fifth scale, which is 16 times smaller.
MS_SSIM_SIDE = 161
# The widest of HaarPSI's three filters must fit into an image of half the size.
HAARPSI_SIDE = 16


@METRIC_REGISTRY.register()
def calculate_quantface_ms_ssim(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """Return multi-scale SSIM (Wang et al., 2003), the mean of colour channels; at most 1.

    Args:
        img, img2: BGR (H, W, 3), 0…255, at least 161 pixels per side.

    Raises:
        QuantFaceError: the images are smaller, or their sizes differ.
    """
    import piq

    a, b = as_tensors(img, img2)
    _check_side("MS-SSIM", img, MS_SSIM_SIDE)
    return float(piq.multi_scale_ssim(a, b))


@METRIC_REGISTRY.register()
def calculate_quantface_haarpsi(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """Return HaarPSI (Reisenhofer et al., 2018), the similarity of Haar wavelets, from 0 to 1.

    Equal images have 1, even black ones, for which the formula divides by 0.

    Args:
        img, img2: BGR (H, W, 3), 0…255, at least 16 pixels per side.

    Raises:
        QuantFaceError: the images are smaller, their sizes differ, or their HaarPSI is undefined.
    """
    import piq

    a, b = as_tensors(img, img2)
    _check_side("HaarPSI", img, HAARPSI_SIDE)
    if torch.equal(a, b):
        return 1.0
    figure = float(piq.haarpsi(a, b))
    if not math.isfinite(figure):
        raise QuantFaceError("HaarPSI is undefined: both images are black or nearly so")
    # Rounding in float32 takes the score of some similar images slightly above 1.
    return min(figure, 1.0)


def _check_side(name: str, img: np.ndarray, least: int) -> None:
    """Raise QuantFaceError if a side of an image (H, W, 3) has fewer pixels than ``least``."""
    height, width = img.shape[:2]
    if min(height, width) < least:
        raise QuantFaceError(
            f"{name}: found {width}x{height} pixels, at least {least} per side are needed"
        )
