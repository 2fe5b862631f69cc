"""Finding the faces of a photograph."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Detector

if TYPE_CHECKING:
    import torch

__all__ = ["ALIASES", "DETECTORS", "build_detector"]

DETECTORS = ("auto", "yunet", "retinaface_mobile0.25", "retinaface_resnet50")
# Names of detectors that are gone, and those that stand in for them.
ALIASES = {"haar": "yunet"}


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
        name: one of :data:`DETECTORS` or of :data:`ALIASES`; ``auto`` is YuNet, which is shipped.
        weights_dir: folder that directly holds RetinaFace's ``.pth``; facexlib's own cache if
            None.
        offline: never download.
        device: where RetinaFace runs; YuNet runs on the CPU.
        notify: told, in one line, about a download and about a name that is an alias.

    Raises:
        QuantFaceError: unknown name; or weights that are missing or damaged.
    """
    if name not in (*DETECTORS, *ALIASES):
        raise QuantFaceError(f"unknown detector {name!r}: choose from {', '.join(DETECTORS)}")
    if name in ALIASES:
        notify(f"the detector {name} is gone; {ALIASES[name]} stands in for it")
        name = ALIASES[name]
    if name in ("auto", "yunet"):
        from quantface_arch.faces.yunet import YuNetDetector

        return YuNetDetector()
    from quantface_arch.faces.retinaface import RetinaFaceDetector
    from quantface_arch.faces.weights import find_weights

    return RetinaFaceDetector(name, find_weights(name, weights_dir, offline, notify), device)
