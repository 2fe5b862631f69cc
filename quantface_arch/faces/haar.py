"""OpenCV's Haar cascades: no weights to fetch, frontal faces only."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Face, shrink

__all__ = ["HaarDetector"]

_LONG_SIDE = 1280
_MIN_FACE_PIXELS = 24
_FACE_NEIGHBOURS = 5
_EYE_NEIGHBOURS = 3
# Where the eyes are in the frontal cascade's boxes, as fractions of the side.
_TYPICAL_EYES = np.array([[0.32, 0.38], [0.67, 0.38]])
# How far from there an eye may be found, same unit.
_EYE_REACH = 0.14
# Below this score a box without two eyes in it is more often a pattern than a face.
_SURE_WITHOUT_EYES = 0.9


class HaarDetector:
    """Finds frontal faces and their two eyes.

    A face of high score in which no two eyes are found gets them where they typically are: blurred
    faces have nothing that the eye cascade would recognize.

    Raises:
        QuantFaceError: the installed OpenCV has no cascades.
    """

    name = "haar"

    def __init__(self) -> None:
        self._faces = _cascade("haarcascade_frontalface_default.xml")
        self._eyes = _cascade("haarcascade_eye.xml")

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """The faces of an upright (H, W, 3) uint8 or uint16 picture, from left to right."""
        small, factor = shrink(rgb, _LONG_SIDE)
        grey = cv2.equalizeHist(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
        boxes, _, weights = self._faces.detectMultiScale3(
            grey,
            scaleFactor=1.1,
            minNeighbors=_FACE_NEIGHBOURS,
            minSize=(_MIN_FACE_PIXELS, _MIN_FACE_PIXELS),
            outputRejectLevels=True,
        )
        faces = []
        for (x, y, side, _), weight in zip(boxes, np.ravel(weights), strict=True):
            box = np.array([x, y, x + side, y + side], np.float64)
            score = float(1 / (1 + np.exp(-weight / 2)))
            eyes = self._find_eyes(grey[y : y + side, x : x + side])
            if eyes is None and score < _SURE_WITHOUT_EYES:
                continue
            eyes = (_TYPICAL_EYES * side if eyes is None else eyes) + box[:2]
            faces.append(Face(box / factor, eyes / factor, score))
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])

    def _find_eyes(self, grey: np.ndarray) -> np.ndarray | None:
        """(2, 2) eyes, left one first, in pixels of a square cut-out of a face; None if unseen."""
        side = grey.shape[0]
        found = self._eyes.detectMultiScale(
            grey[: side * 2 // 3], scaleFactor=1.05, minNeighbors=_EYE_NEIGHBOURS
        )
        centres = np.array([[x + w / 2, y + h / 2] for x, y, w, h in found]).reshape(-1, 2) / side
        eyes = []
        for typical in _TYPICAL_EYES:
            distances = np.linalg.norm(centres - typical, axis=1)
            if distances.size == 0 or distances.min() > _EYE_REACH:
                return None
            eyes.append(centres[distances.argmin()])
        return np.array(eyes) * side


def _cascade(name: str) -> cv2.CascadeClassifier:
    if not hasattr(cv2, "CascadeClassifier"):
        raise QuantFaceError(
            f"OpenCV {cv2.__version__} has no Haar cascades: install opencv-python>=4.8,<5"
        )
    path = Path(cv2.data.haarcascades) / name
    cascade = cv2.CascadeClassifier(str(path))
    if cascade.empty():
        raise QuantFaceError(f"OpenCV's cascade {path} is missing or damaged")
    return cascade
