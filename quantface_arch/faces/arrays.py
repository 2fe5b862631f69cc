"""Convert aligned faces between images and the networks' arrays."""

from __future__ import annotations

import numpy as np

__all__ = ["array_to_face", "face_to_array"]

# Rec. 601 luma weights, which JPEG and Pillow use to convert colour to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def face_to_array(face: np.ndarray) -> np.ndarray:
    """Convert an (H, W, 3) uint8 or uint16 image to a float32 (3, H, W) array in [-1, 1]."""
    peak = np.iinfo(face.dtype).max
    return face.transpose(2, 0, 1).astype(np.float32) * (2 / peak) - 1


def array_to_face(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Convert a (3, H, W) array in [-1, 1] to a rounded (H, W, 3) image in the dtype of ``like``.

    If ``like`` is grey, so is the result: a black-and-white image must not get tinted faces.
    """
    peak = np.iinfo(like.dtype).max
    levels = (array.transpose(1, 2, 0).clip(-1, 1) + 1) * (peak / 2)
    if (like == like[..., :1]).all():
        levels = np.repeat((levels @ _LUMA)[..., None], 3, axis=2)
    return np.rint(levels).astype(like.dtype)
