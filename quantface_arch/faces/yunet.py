"""Detect faces with YuNet, the shipped detector, with five landmarks for each face."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Face
from quantface_arch.faces.passes import detect_in_passes

__all__ = ["MODEL", "YuNetDetector"]

MODEL = Path(__file__).resolve().parents[1] / "weights/face_detection_yunet_2023mar.onnx"

_LONG_SIDES = (120, 160, 226, 320, 452, 640, 1024, 2048)
# The network was trained on faces of 10 to 300 pixels.
_SIZES = (40.0, 320.0)
_MIN_SCORE, _SCORES = 0.7, (0.845, 0.93)
_MAX_OVERLAP = 0.3
_MOST_CANDIDATES = 5000
# Smaller images are padded: with a few rows or columns, OpenCV reads memory that it never wrote.
_SMALLEST_SIDE = 64


class YuNetDetector:
    """Finds faces with five landmarks each. Threads may share a detector.

    Args:
        weights: the network as OpenCV Zoo publishes it, ``.onnx``.

    Raises:
        QuantFaceError: the file is missing or damaged, or OpenCV has no ``FaceDetectorYN``.
    """

    name = "yunet"

    def __init__(self, weights: str | os.PathLike[str] = MODEL) -> None:
        self._network = _load(Path(weights))
        # The network keeps the size of its input between the two calls of a pass, so that passes
        # must take turns.
        self._lock = threading.Lock()

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces of an upright (H, W, 3) uint8 or uint16 image, from left to right."""
        return detect_in_passes(rgb, self._look, _LONG_SIDES, _SIZES, _SCORES)

    def _look(self, rgb: np.ndarray) -> list[Face]:
        height, width = rgb.shape[:2]
        bottom, right = (max(_SMALLEST_SIDE - side, 0) for side in (height, width))
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        bgr = cv2.copyMakeBorder(bgr, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
        with self._lock:
            self._network.setInputSize((bgr.shape[1], bgr.shape[0]))
            _, rows = self._network.detect(bgr)
        if rows is None:
            return []
        # A row has 4 numbers for the box (left, top, width, height), 10 for the landmarks and the
        # score.
        faces = [
            Face(
                np.concatenate([row[:2], row[:2] + row[2:4]]),
                row[4:14].reshape(5, 2),
                min(float(row[14]), 1.0),
            )
            for row in rows.astype(np.float64)
            if np.isfinite(row).all()
        ]
        return [face for face in faces if _is_centred_inside(face, height, width)]


def _is_centred_inside(face: Face, height: int, width: int) -> bool:
    x, y = (face.box[:2] + face.box[2:]) / 2
    return bool(0 <= x < width and 0 <= y < height)


def _load(path: Path) -> cv2.FaceDetectorYN:
    if not path.is_file():
        raise QuantFaceError(f"{path}: the file of the detector yunet is missing")
    if not hasattr(cv2, "FaceDetectorYN"):
        raise QuantFaceError(
            f"OpenCV {cv2.__version__} has no FaceDetectorYN: install opencv-python>=4.8,<5"
        )
    try:
        return cv2.FaceDetectorYN.create(
            str(path), "", (320, 320), _MIN_SCORE, _MAX_OVERLAP, _MOST_CANDIDATES
        )
    except cv2.error as error:
        raise QuantFaceError(f"{path} does not hold the network yunet: {error.err}") from error
