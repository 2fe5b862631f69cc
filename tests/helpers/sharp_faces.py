"""Images that are sharp at 512×512, from the shipped faces of 256×256."""

from __future__ import annotations

import numpy as np

from quantface_arch.utils.images import load_rgb

__all__ = ["mosaics"]


def mosaics(paths):
    """Return uint8 (512, 512, 3) images of four faces each, which keep the faces' sharpness."""
    faces = [load_rgb(path) for path in paths]
    rows = [np.hstack(pair) for pair in zip(faces[::2], faces[1::2], strict=True)]
    return [np.vstack(pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
