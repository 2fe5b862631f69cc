"""Convert aligned faces between arrays and the networks' tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["face_to_tensor", "tensor_to_face"]

# Rec. 601 luma, the weights that made grey of colour in JPEG and Pillow.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def face_to_tensor(face: np.ndarray) -> Tensor:
    """Return (H, W, 3) uint8 or uint16 as float (3, H, W) in [-1, 1]."""
    peak = np.iinfo(face.dtype).max
    scaled = face.transpose(2, 0, 1).astype(np.float32) * (2 / peak) - 1
    return torch.from_numpy(np.ascontiguousarray(scaled))


def tensor_to_face(tensor: Tensor, like: np.ndarray) -> np.ndarray:
    """Return (3, H, W) in [-1, 1] as (H, W, 3) in the dtype of ``like``, rounded.

    A black-and-white image must not come back with tinted faces: the result is grey where ``like``
    is.
    """
    peak = np.iinfo(like.dtype).max
    levels = (tensor.float().numpy().transpose(1, 2, 0).clip(-1, 1) + 1) * (peak / 2)
    if (like == like[..., :1]).all():
        levels = np.repeat((levels @ _LUMA)[..., None], 3, axis=2)
    return np.rint(levels).astype(like.dtype)
