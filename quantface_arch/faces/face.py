"""A face found in an image, what finds faces, and what detectors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from quantface_arch.utils.images import to_uint8

__all__ = ["Detector", "Face", "shrink"]


@dataclass(frozen=True)
class Face:
    """One face found in a picture, in the picture's pixels.

    Attributes:
        box: (4,) float: left, top, right, bottom.
        landmarks: (5, 2) float: left eye, right eye (as seen), nose, left and right corner of the
            mouth; or (2, 2): the eyes alone, from a detector that knows no more.
        score: confidence, 0 to 1.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float


class Detector(Protocol):
    """Anything that finds faces."""

    name: str

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """The faces of an upright (H, W, 3) uint8 or uint16 picture, from left to right."""
        ...


def shrink(rgb: np.ndarray, long_side: int) -> tuple[np.ndarray, float]:
    """A uint8 copy no longer than ``long_side`` and the factor it was shrunk by (at most 1)."""
    height, width = rgb.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return to_uint8(rgb), factor
