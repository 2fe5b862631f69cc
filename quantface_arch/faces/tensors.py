"""Convert aligned faces between arrays and the networks' tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["face_to_tensor", "tensor_to_face"]

# Rec. 601 luma weights, which JPEG and Pillow use to convert colour to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def face_to_tensor(face: np.ndarray) -> Tensor:
    """Convert an (H, W, 3) uint8 or uint16 array to a float (3, H, W) tensor in [-1, 1]."""
    peak = np.iinfo(face.dtype).max
    scaled = face.transpose(2, 0, 1).astype(np.float32) * (2 / peak) - 1
    return torch.from_numpy(np.ascontiguousarray(scaled))


def tensor_to_face(tensor: Tensor, like: np.ndarray) -> np.ndarray:
    """Convert a (3, H, W) tensor in [-1, 1] to a rounded (H, W, 3) array in the dtype of ``like``.

    If ``like`` is grey, so is the result: a black-and-white image must not get tinted faces.
    """
    peak = np.iinfo(like.dtype).max
    levels = (tensor.float().numpy().transpose(1, 2, 0).clip(-1, 1) + 1) * (peak / 2)
    if (like == like[..., :1]).all():
        levels = np.repeat((levels @ _LUMA)[..., None], 3, axis=2)
    return np.rint(levels).astype(like.dtype)
