"""Finding the faces of a photograph."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Detector

if TYPE_CHECKING:
    import torch

__all__ = ["DETECTORS", "build_detector"]

DETECTORS = ("auto", "retinaface_mobile0.25", "retinaface_resnet50", "haar")
_AUTO = "retinaface_mobile0.25"


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
