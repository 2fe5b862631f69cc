"""Convert the images that BasicSR passes to metrics into tensors for networks."""

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
    """Raise QuantFaceError if the sizes of images (H, W, 3) differ."""
    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in images]
    if len(set(sizes)) > 1:
        raise QuantFaceError(f"the images' sizes differ: found {' and '.join(sizes)} pixels")


def as_tensors(*images: np.ndarray, device: str | torch.device = "cpu") -> tuple[Tensor, ...]:
    """Return BGR images as RGB tensors, float32 (1, 3, H, W) in [0, 1], one for each image.

    Args:
        images: (H, W, 3) of any dtype, on the 0…255 scale, all of the same size.

    Raises:
        QuantFaceError: their sizes differ.
    """
    check_sizes(*images)
    # ``img2tensor`` returns a list only for a list of images.
    tensors = (cast("Tensor", img2tensor(image)) for image in images)
    return tuple(tensor[None].to(device) / 255 for tensor in tensors)
