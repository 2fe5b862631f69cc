"""Metrics of a face's detail, on the gradients of the grey image: edge PSNR and sharpness."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError

__all__ = ["calculate_quantface_edge_psnr", "calculate_quantface_sharpness", "gradient_magnitude"]

SOBEL_PEAK = 4 * 255.0


def gradient_magnitude(image: np.ndarray) -> np.ndarray:
    """Return the Sobel gradient magnitude of the grey image, float32 (H, W), at most √2·1020.

    Args:
        image: BGR (H, W, 3) on the 0…255 scale.
    """
    gray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY)
    return np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))


@METRIC_REGISTRY.register()
def calculate_quantface_edge_psnr(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """Return the PSNR in dB between the gradient magnitudes of two images, with the peak 1020.

    Args:
        img, img2: BGR (H, W, 3), 0…255.
    """
    error = np.mean((gradient_magnitude(img) - gradient_magnitude(img2)) ** 2)
    return float(10 * np.log10(SOBEL_PEAK**2 / max(error, 1e-12)))


@METRIC_REGISTRY.register()
def calculate_quantface_sharpness(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
    """Return the mean gradient magnitude of ``img`` divided by that of ``img2``.

    1 is best. Lower values mean blur, higher values mean noise or invented texture. Equal images
    have 1, even if they are flat.

    Args:
        img, img2: restored and clean BGR images (H, W, 3), 0…255.

    Raises:
        QuantFaceError: the clean image is flat, and the restored one differs from it.
    """
    if np.array_equal(img, img2):
        return 1.0
    wanted = gradient_magnitude(img2).mean()
    if wanted == 0:
        raise QuantFaceError("sharpness is undefined: the clean image has no gradients")
    return float(gradient_magnitude(img).mean() / wanted)
