"""Detect faces with RetinaFace, as facexlib implements it."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Face
from quantface_arch.faces.passes import detect_in_passes

if TYPE_CHECKING:
    from facexlib.detection.retinaface import RetinaFace

__all__ = ["RetinaFaceDetector"]

_LONG_SIDES = (160, 320, 640, 2048)
# The network's anchors are 16 to 512 pixels, but it also finds fragments of faces above 400.
_SIZES = (40.0, 320.0)
_MIN_SCORE, _SCORES = 0.8, (0.85, 0.95)


class RetinaFaceDetector:
    """Finds faces with five landmarks each. Threads may share a detector.

    Args:
        network: ``retinaface_mobile0.25`` or ``retinaface_resnet50``.
        weights: facexlib's file for the network; it is loaded with ``weights_only``.
        device: device of the network.

    Raises:
        QuantFaceError: the file is damaged or holds another network.
    """

    def __init__(
        self, network: str, weights: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> None:
        self.name = network
        self.network = _load(network, weights, torch.device(device))
        # facexlib keeps the size of its input in the network while it detects, so calls take turns.
        self._lock = threading.Lock()

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces of an upright (H, W, 3) uint8 or uint16 image, from left to right."""
        return detect_in_passes(rgb, self._look, _LONG_SIDES, _SIZES, _SCORES)

    @torch.inference_mode()
    def _look(self, rgb: np.ndarray) -> list[Face]:
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        with self._lock:
            rows = self.network.detect_faces(bgr, conf_threshold=_MIN_SCORE)
        return [
            # A row of facexlib has 4 numbers for the box, the score, and 10 for the landmarks.
            Face(row[:4], row[5:15].reshape(5, 2), float(row[4]))
            for row in rows.astype(np.float64)
        ]


def _load(network: str, weights: str | os.PathLike[str], device: torch.device) -> RetinaFace:
    from facexlib.detection.retinaface import RetinaFace

    from quantface_arch.utils.state_dict import read_state

    with warnings.catch_warnings():
        # facexlib builds its ResNet with a deprecated argument of torchvision, which warns.
        warnings.simplefilter("ignore", UserWarning)
        model = RetinaFace(network.removeprefix("retinaface_"), device=device)
    try:
        state = read_state(weights)
        model.load_state_dict({key.removeprefix("module."): state[key] for key in state})
    except Exception as error:
        # torch raises many types of exceptions for damaged files.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QuantFaceError(
            f"{weights} does not hold the weights of {network}: {first_line}"
        ) from error
    return model.eval().to(device)
