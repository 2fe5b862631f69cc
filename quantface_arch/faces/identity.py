"""Embed aligned faces with MobileFaceNet, on OpenCV alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE

__all__ = ["CROP", "MEAN", "SIDE", "STD", "FaceEmbedder"]

# The network takes a tight crop, which is cut from an aligned face as in pixel2style2pixel
# (Richardson et al., CVPR 2021): top, bottom, left and right, as shares of the face's side.
CROP = (35 / 256, 223 / 256, 32 / 256, 220 / 256)
SIDE = 112
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FaceEmbedder:
    """Embeds aligned faces, as ``QuantFaceIdentityLoss`` with ``net: mobileface`` does.

    Threads may share an embedder.

    Args:
        weights: ``MobileFaceNet.onnx`` of github foamliu/MobileFaceNet.

    Raises:
        QuantFaceError: the file is missing or damaged, or holds another network.
    """

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        self.path = Path(weights)
        # The network keeps its input between two calls, so that faces must take turns.
        self._lock = threading.Lock()
        top, bottom, left, right = (round(share * FACE_SIZE) for share in CROP)
        self._crop = np.s_[top:bottom, left:right]
        self._mean = _pooling(bottom - top, SIDE)
        if not self.path.is_file():
            raise QuantFaceError(f"{self.path}: no such file")
        try:
            self._network = cv2.dnn.readNetFromONNX(str(self.path))
            found = self._run(np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)).shape
        except cv2.error as error:
            raise QuantFaceError(
                f"{self.path} does not hold the network MobileFaceNet: {error.err}"
            ) from error
        if found != (1, 128):
            raise QuantFaceError(f"{self.path}: found a result of shape {found}, expected (1, 128)")

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """Return the embedding of a face, float64 (128,) of length 1.

        Args:
            face: (512, 512, 3) RGB in uint8 or uint16, aligned.
        """
        found = self._run(face)[0].astype(np.float64)
        return found / np.linalg.norm(found)

    def _run(self, face: np.ndarray) -> np.ndarray:
        """Return the network's result for a face."""
        planes = face[self._crop].transpose(2, 0, 1).astype(np.float32) / np.iinfo(face.dtype).max
        small = self._mean @ planes @ self._mean.T
        mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        with self._lock:
            self._network.setInput(((small - mean) / deviation)[None])
            return self._network.forward()


def _pooling(size: int, count: int) -> np.ndarray:
    """Return the (count, size) matrix that averages as torch's adaptive average pooling does."""
    matrix = np.zeros((count, size), np.float32)
    for row in range(count):
        first, end = row * size // count, -(-(row + 1) * size // count)
        matrix[row, first:end] = 1 / (end - first)
    return matrix
