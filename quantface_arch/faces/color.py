"""Keeping a face's colours while its detail is replaced."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["LUMA", "keep_color"]

# Rec. 601, the weights that made grey of colour in JPEG and Pillow.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Degradation leaves colour intact at this scale: a face has 32×32 patches of 16 pixels.
_PATCHES = 32


def keep_color(restored: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Give a restored face the colours of the original, leaving its brightness and detail alone.

    The difference of the two is reduced to its chroma and to patches of 1/32 of the face, and
    added. Small networks drift towards the hair and skin they were trained on; colour at low
    resolution is what degradation hardly touches (after StableSR, Wang et al., 2023).

    Args:
        restored, original: (H, W, 3) RGB of one unsigned dtype.
    """
    height, width = restored.shape[:2]
    difference = original.astype(np.float32) - restored
    chroma = difference - (difference @ LUMA)[..., None]
    patches = cv2.resize(chroma, (_PATCHES, _PATCHES), interpolation=cv2.INTER_AREA)
    patches = cv2.GaussianBlur(patches, (0, 0), 1)
    smooth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    peak = np.iinfo(restored.dtype).max
    return np.rint(restored + smooth).clip(0, peak).astype(restored.dtype)
