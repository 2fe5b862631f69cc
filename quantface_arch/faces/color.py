"""Give a restored face the colours and the structure of its original, without its degradation.

Networks drift towards the hair, skin and light of their training images. Degradation hardly changes
colour and brightness at low resolution, so these can be taken from the input. It changes shapes
of a few pixels more, but a network's errors there differ from those of the input, so a mixture of
both has smaller errors than either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from quantface_arch.errors import check_choice
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.faces.choices import COLOR_FIXES

__all__ = ["PATCHES", "STRUCTURE_SHARE", "STRUCTURE_SIGMA", "default_color_fix", "fix_color"]

# A face has 32×32 patches of 16×16 pixels. Degradation preserves tones at this resolution.
PATCHES = 32
# How much ``structure`` takes from the original, and the standard deviation, in pixels of a face of
# 512 pixels, of the Gaussian filter that keeps the original's noise out.
STRUCTURE_SHARE = 0.3
STRUCTURE_SIGMA = 1.5
_WAVELET_LEVELS = 5
# A channel with a smaller deviation, as a fraction of the full range, is treated as flat.
_FLAT = 1e-3


def _none(restored: np.ndarray, original: np.ndarray, peak: float) -> np.ndarray:
    return restored


def _lowres(restored: np.ndarray, original: np.ndarray, peak: float) -> np.ndarray:
    """Add the difference between the two images at a resolution of 32×32 patches."""
    height, width = restored.shape[:2]
    patches = cv2.resize(original - restored, (PATCHES, PATCHES), interpolation=cv2.INTER_AREA)
    patches = cv2.GaussianBlur(patches, (0, 0), 1)
    return restored + cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)


def _structure(restored: np.ndarray, original: np.ndarray, peak: float) -> np.ndarray:
    """Take tones as ``lowres`` does, then a share of everything coarser than a few pixels."""
    restored = _lowres(restored, original, peak)
    sigma = STRUCTURE_SIGMA * restored.shape[1] / FACE_SIZE
    return restored + STRUCTURE_SHARE * cv2.GaussianBlur(original - restored, (0, 0), sigma)


def _wavelet(restored: np.ndarray, original: np.ndarray, peak: float) -> np.ndarray:
    """Replace the lowest band of an à-trous wavelet transform (Holschneider et al., 1989).

    The transform is linear: the difference of the low bands is the low band of the difference.
    """
    low = original - restored
    for level in range(_WAVELET_LEVELS):
        kernel = np.zeros(2 * 2**level + 1, np.float32)
        kernel[:: 2**level] = 0.25, 0.5, 0.25
        low = cv2.sepFilter2D(low, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return restored + low


def _adain(restored: np.ndarray, original: np.ndarray, peak: float) -> np.ndarray:
    """Match the mean and standard deviation of each channel (Huang and Belongie, 2017)."""
    means, wanted_means = (image.mean(axis=(0, 1)) for image in (restored, original))
    spreads, wanted_spreads = (image.std(axis=(0, 1)) for image in (restored, original))
    gain = wanted_spreads / np.maximum(spreads, _FLAT * peak)
    return (restored - means) * gain + wanted_means


_FIXES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = dict(
    zip(COLOR_FIXES, (_none, _structure, _lowres, _wavelet, _adain), strict=True)
)


def fix_color(restored: np.ndarray, original: np.ndarray, name: str) -> np.ndarray:
    """Return a restored face with the colours of its original.

    Args:
        restored, original: (H, W, 3) RGB of the same size and dtype: uint8, uint16, or float32 in
            [0, 1].
        name: what to take from the original. ``none`` takes nothing. ``lowres`` takes the tones of
            32×32 patches, and ``structure`` also 30 % of everything coarser than about 3 pixels,
            which brings the face nearer to the person. ``wavelet`` takes everything coarser than 32
            pixels, and ``adain`` the mean and standard deviation of each channel; these two are
            StableSR's colour corrections (Wang et al., 2023).

    Raises:
        QuantFaceError: the name is unknown.
    """
    check_choice("color_fix", name, COLOR_FIXES)
    if name == "none":
        return restored
    is_integer = np.issubdtype(restored.dtype, np.integer)
    peak = float(np.iinfo(restored.dtype).max) if is_integer else 1.0
    fixed = _FIXES[name](restored.astype(np.float32), original.astype(np.float32), peak)
    return (np.rint(fixed) if is_integer else fixed).clip(0, peak).astype(restored.dtype)


def default_color_fix(arch: Mapping[str, Any]) -> str:
    """Return the colour fix that suits a network.

    Args:
        arch: the network's ``arch_options``, or an empty mapping.

    Returns:
        ``structure`` for the small presets of OSDFace, such as the shipped models; else ``none``.
    """
    small = arch.get("type") == "OSDFace" and arch.get("preset", "osdface") != "osdface"
    return "structure" if small else "none"
