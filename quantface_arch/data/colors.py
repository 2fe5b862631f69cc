"""Random colours for training faces, so that a network learns those that its faces lack."""

from __future__ import annotations

import random

import numpy as np

__all__ = ["recolored"]

# The range of the factor of the saturation.
SATURATION = (0.5, 2.0)


def recolored(image: np.ndarray) -> np.ndarray:
    """Return an image with permuted channels and another saturation, by the global generator.

    Args:
        image: float32 (H, W, 3) in [0, 1].
    """
    order = random.sample(range(3), 3)
    grey = image.mean(axis=2, keepdims=True)
    factor = np.float32(random.uniform(*SATURATION))
    return np.clip(grey + factor * (image[..., order] - grey), 0, 1)
