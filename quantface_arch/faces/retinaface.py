"""RetinaFace as facexlib implements it."""

from __future__ import annotations

import os
import warnings

import cv2
import numpy as np
import torch
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Face, shrink

__all__ = ["RetinaFaceDetector"]

# The network's anchors are 16 to 512 pixels. A large photograph is looked at twice: fine enough
# for small faces, coarse enough for one that fills the picture.
_LONG_SIDES = (2048, 640)
_MIN_SCORE = 0.8
_MAX_OVERLAP = 0.4
_MIN_FACE_PIXELS = 10


class RetinaFaceDetector:
    """Finds faces with five landmarks each.

    Args:
        network: ``retinaface_mobile0.25`` or ``retinaface_resnet50``.
        weights: facexlib's file for it; loaded with ``weights_only``.
        device: where it runs.

    Raises:
        QuantFaceError: the file is damaged or holds another network.
    """

    def __init__(
        self, network: str, weights: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> None:
        self.name = network
        self.network = _load(network, weights, torch.device(device))

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """The faces of an upright (H, W, 3) uint8 or uint16 picture, from left to right."""
        found: list[Face] = []
        seen = None
        for long_side in _LONG_SIDES:
            small, factor = shrink(rgb, long_side)
            if small.shape != seen:
                found += self._detect_at(small, factor)
            seen = small.shape
        return sorted(_without_doubles(found), key=lambda face: face.box[0] + face.box[2])

    @torch.inference_mode()
    def _detect_at(self, rgb: np.ndarray, factor: float) -> list[Face]:
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        rows = self.network.detect_faces(bgr, conf_threshold=_MIN_SCORE)
        return [
            # facexlib's rows: 4 for the box, the score, 10 for the landmarks.
            Face(row[:4] / factor, row[5:15].reshape(5, 2) / factor, float(row[4]))
            for row in rows.astype(np.float64)
            if min(row[2] - row[0], row[3] - row[1]) >= _MIN_FACE_PIXELS
        ]


def _without_doubles(faces: list[Face]) -> list[Face]:
    """Of faces that overlap, found at several sizes of the picture, the one with the best score."""
    if not faces:
        return []
    boxes = [[*face.box[:2], *(face.box[2:] - face.box[:2])] for face in faces]
    kept = cv2.dnn.NMSBoxes(boxes, [face.score for face in faces], 0.0, _MAX_OVERLAP)
    return [faces[i] for i in np.ravel(kept)]


def _load(network: str, weights: str | os.PathLike[str], device: torch.device) -> nn.Module:
    from facexlib.detection.retinaface import RetinaFace

    from quantface_arch.utils.state_dict import read_state

    with warnings.catch_warnings():
        # facexlib asks torchvision for a ResNet by an argument that is deprecated.
        warnings.simplefilter("ignore", UserWarning)
        model = RetinaFace(network.removeprefix("retinaface_"), device=device)
    try:
        state = read_state(weights)
        model.load_state_dict({key.removeprefix("module."): state[key] for key in state})
    except Exception as error:
        # torch answers damaged files with many exception types.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QuantFaceError(
            f"{weights} does not hold the weights of {network}: {first_line}"
        ) from error
    return model.eval().to(device)
