"""Finding the faces of a photograph."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import to_uint8

if TYPE_CHECKING:
    import torch

__all__ = ["DETECTORS", "Detector", "Face", "build_detector", "shrink"]

DETECTORS = ("auto", "retinaface_mobile0.25", "retinaface_resnet50", "haar")
_AUTO = "retinaface_mobile0.25"


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


def build_detector(
    name: str = "auto",
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str | torch.device = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> Detector:
    """Make a detector, fetching its weights if need be.

    Args:
        name: one of :data:`DETECTORS`; ``auto`` is RetinaFace (MobileNet 0.25) where its weights
            can be had, else OpenCV's Haar cascades.
        weights_dir: folder that directly holds the ``.pth`` file; facexlib's own cache if None.
        offline: never download.
        device: where RetinaFace runs.
        notify: told, in one line, about a download and about falling back.

    Raises:
        QuantFaceError: unknown name; or weights that are missing or damaged (with ``auto``, only
            damaged ones).
    """
    from quantface_arch.faces.haar import HaarDetector
    from quantface_arch.faces.retinaface import RetinaFaceDetector
    from quantface_arch.faces.weights import find_weights
    from quantface_arch.utils.download import Unavailable

    if name not in DETECTORS:
        raise QuantFaceError(f"unknown detector {name!r}: choose from {', '.join(DETECTORS)}")
    if name == "haar":
        return HaarDetector()
    network = _AUTO if name == "auto" else name
    try:
        path = find_weights(network, weights_dir, offline, notify)
    except Unavailable as error:
        if name != "auto":
            raise
        notify(f"{error}; using OpenCV's Haar cascades, which find frontal faces only")
        return HaarDetector()
    return RetinaFaceDetector(network, path, device)


def shrink(rgb: np.ndarray, long_side: int) -> tuple[np.ndarray, float]:
    """A uint8 copy no longer than ``long_side`` and the factor it was shrunk by (at most 1)."""
    height, width = rgb.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return to_uint8(rgb), factor
