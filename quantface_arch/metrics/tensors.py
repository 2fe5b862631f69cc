"""Images as BasicSR hands them to metrics, brought to what networks take."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import img2tensor
from quantface_arch.errors import QuantFaceError

__all__ = ["as_tensors", "check_sizes"]


def check_sizes(*images: np.ndarray) -> None:
    """Raise QuantFaceError unless images (H, W, 3) are all of one size."""
    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in images]
    if len(set(sizes)) > 1:
        raise QuantFaceError(f"images of one size are wanted, found {' and '.join(sizes)} pixels")


def as_tensors(*images: np.ndarray, device: str | torch.device = "cpu") -> tuple[Tensor, ...]:
    """BGR images as RGB float32 (1, 3, H, W) in [0, 1], one tensor each.

    Args:
        images: (H, W, 3) of any dtype, on the 0…255 scale, all of one size.

    Raises:
        QuantFaceError: their sizes differ.
    """
    check_sizes(*images)
    # ``img2tensor`` returns a list only for a list of images.
    tensors = (cast("Tensor", img2tensor(image)) for image in images)
    return tuple(tensor[None].to(device) / 255 for tensor in tensors)
