"""The face type and the interface of detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Detector", "Face"]


@dataclass(frozen=True)
class Face:
    """One face in an image; all coordinates are in pixels of the image.

    Attributes:
        box: (4,) float: left, top, right, bottom.
        landmarks: (5, 2) float: left eye, right eye (as seen), nose, left and right mouth corner;
            or (2, 2), the eyes alone, if a custom detector finds no more.
        score: confidence, from 0 to 1.
        plausible: whether a real face can have these landmarks; others stay unrestored.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    plausible: bool = True

    @property
    def size(self) -> float:
        """Square root of the box's area, in pixels."""
        return float(np.sqrt(np.prod(np.maximum(self.box[2:] - self.box[:2], 0))))


class Detector(Protocol):
    """The interface of face detectors."""

    name: str

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces of an upright (H, W, 3) uint8 or uint16 image, from left to right."""
        ...
