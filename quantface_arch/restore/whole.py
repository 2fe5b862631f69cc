"""Restore or enlarge whole images with a network that knows no faces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantface_arch.background.load import load_background
from quantface_arch.restore.restorer import FaceRestorer

if TYPE_CHECKING:
    import numpy as np

    from quantface_arch.faces.face import Face

__all__ = ["whole_restorer"]


class _NoFaces:
    """A detector that looks for no faces."""

    name = "none"

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return no face."""
        return []


def whole_restorer(
    name_or_path: str, runtime: str, device: str, offline: bool, notify: Callable[[str], None]
) -> tuple[FaceRestorer, int]:
    """Load a network that maps whole images, in tiles, to equally large or larger ones.

    Args:
        name_or_path, runtime, device, offline, notify: see ``load_background``.

    Returns:
        a restorer that finds no faces and whose background is the result; and the network's scale.

    Raises:
        QuantFaceError: see ``load_background``.
    """
    tiled = load_background(name_or_path, runtime, device, offline, notify, whole=True)
    restorer = FaceRestorer(
        tiled.network, device, detector=_NoFaces(), background=tiled, color_fix="none"
    )
    return restorer, tiled.scale
