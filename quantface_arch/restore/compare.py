"""Place the input and the result side by side."""

from __future__ import annotations

import cv2
import numpy as np

from quantface_arch.utils.images import RGBImage, to_uint8

__all__ = ["side_by_side"]

_LONG_SIDE = 4096
_LABEL_HEIGHT = 22
_GAP = 4
_WHITE = (255, 255, 255)


def side_by_side(before: RGBImage, after: RGBImage) -> RGBImage:
    """Return the input and the restored image with labels, as opaque 8-bit RGB.

    Both halves have the size of ``after``, or are shrunk so that no side exceeds 4096 pixels.
    """
    width, height = after.size
    factor = min(1.0, _LONG_SIDE / max(width, height))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    halves = [_labelled(before, "input", size), _labelled(after, "restored", size)]
    gap = np.full((halves[0].shape[0], _GAP, 3), 255, np.uint8)
    return after.with_pixels(np.concatenate([halves[0], gap, halves[1]], axis=1))


def _labelled(image: RGBImage, label: str, size: tuple[int, int]) -> np.ndarray:
    """Return the resized image under a strip with its label."""
    strip = np.zeros((_LABEL_HEIGHT, size[0], 3), np.uint8)
    place = (4, _LABEL_HEIGHT - 7)
    cv2.putText(strip, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1, cv2.LINE_AA)
    return np.concatenate([strip, to_uint8(image.resized(*size).rgb)], axis=0)
