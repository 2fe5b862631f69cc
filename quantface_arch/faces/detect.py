"""Build the face detector that a name selects."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.choices import ALIASES, DETECTORS
from quantface_arch.faces.face import Detector
from quantface_arch.utils.installation import need

if TYPE_CHECKING:
    import torch

__all__ = ["build_detector"]


def build_detector(
    name: str = "auto",
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str | torch.device = "cpu",
    notify: Callable[[str], None] = lambda message: None,
) -> Detector:
    """Return a detector; its weights are downloaded if they are missing.

    Args:
        name: one of ``choices.DETECTORS`` or of ``choices.ALIASES``; ``auto`` is YuNet, which is
            shipped.
        weights_dir: folder that directly holds RetinaFace's ``.pth`` file; None is facexlib's
            cache.
        offline: never download weights.
        device: device of RetinaFace; YuNet runs on the CPU.
        notify: receives one line about each download and about a name that is an alias.

    Raises:
        QuantFaceError: the name is unknown, or the weights are missing or damaged.
    """
    if name not in (*DETECTORS, *ALIASES):
        raise QuantFaceError(f"unknown detector {name!r}: choose from {', '.join(DETECTORS)}")
    if name in ALIASES:
        notify(f"the detector {name} was removed; {ALIASES[name]} replaces it")
        name = ALIASES[name]
    if name in ("auto", "yunet"):
        from quantface_arch.faces.yunet import YuNetDetector

        return YuNetDetector()
    need(f"detector {name}", "facexlib")
    from quantface_arch.faces.retinaface import RetinaFaceDetector
    from quantface_arch.faces.weights import find_weights

    return RetinaFaceDetector(name, find_weights(name, weights_dir, offline, notify), device)
