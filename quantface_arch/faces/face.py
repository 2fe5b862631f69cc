"""A face found in an image, and the protocol of what finds faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Detector", "Face"]


@dataclass(frozen=True)
class Face:
    """One face found in a picture, in the picture's pixels.

    Attributes:
        box: (4,) float: left, top, right, bottom.
        landmarks: (5, 2) float: left eye, right eye (as seen), nose, left and right corner of the
            mouth; or (2, 2), the eyes alone, from a detector of your own that knows no more.
        score: confidence, 0 to 1.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float


class Detector(Protocol):
    """Anything that finds faces."""

    name: str

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces of an upright (H, W, 3) uint8 or uint16 picture, from left to right."""
        ...
