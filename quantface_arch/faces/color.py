"""Keeping a face's colours and brightness while its detail is replaced."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["keep_color"]

# Degradation leaves tones intact at this scale: a face has 32×32 patches of 16 pixels.
_PATCHES = 32


def keep_color(restored: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Give a restored face the tones of the original, leaving its detail alone.

    The difference of the two is reduced to patches of 1/32 of the face and added. Small networks
    drift towards the hair, skin and light they were trained on; colour and brightness at low
    resolution are what degradation hardly touches (after StableSR, Wang et al., 2023).

    Args:
        restored, original: (H, W, 3) RGB of one unsigned dtype.
    """
    height, width = restored.shape[:2]
    difference = original.astype(np.float32) - restored
    patches = cv2.resize(difference, (_PATCHES, _PATCHES), interpolation=cv2.INTER_AREA)
    patches = cv2.GaussianBlur(patches, (0, 0), 1)
    smooth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    peak = np.iinfo(restored.dtype).max
    return np.rint(restored + smooth).clip(0, peak).astype(restored.dtype)
