"""Structural similarity at several scales and in Haar wavelets, by the ``piq`` package."""

from __future__ import annotations

from typing import Any

import numpy as np

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError
from quantface_arch.metrics.tensors import as_tensors

__all__ = ["calculate_quantface_haarpsi", "calculate_quantface_ms_ssim"]

# An 11×11 window on the fifth scale, which is 16 times smaller.
MS_SSIM_SIDE = 161


@METRIC_REGISTRY.register()
def calculate_quantface_ms_ssim(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """Multi-scale SSIM (Wang et al., 2003), the mean of the colour channels; 1 for equal pictures.

    Args:
        img, img2: BGR (H, W, 3), 0…255, at least 161 pixels a side.

    Raises:
        QuantFaceError: smaller pictures, or of different sizes.
    """
    import piq

    a, b = as_tensors(img, img2)
    height, width = img.shape[:2]
    if min(height, width) < MS_SSIM_SIDE:
        raise QuantFaceError(
            f"MS-SSIM: found {width}x{height} pixels, at least {MS_SSIM_SIDE} a side are needed"
        )
    return float(piq.multi_scale_ssim(a, b))


@METRIC_REGISTRY.register()
def calculate_quantface_haarpsi(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """HaarPSI (Reisenhofer et al., 2018): similarity of Haar wavelet coefficients, 0 to 1.

    Args:
        img, img2: BGR (H, W, 3), 0…255, at least 16 pixels a side.

    Raises:
        QuantFaceError: pictures of different sizes.
    """
    import piq

    a, b = as_tensors(img, img2)
    return float(piq.haarpsi(a, b))
