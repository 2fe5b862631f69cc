"""An image in memory: RGB of 8 or 16 bits per channel, with alpha and colour profile."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

__all__ = ["RGBImage", "resize", "to_uint8"]


@dataclass(frozen=True)
class RGBImage:
    """An upright image.

    Attributes:
        rgb: (H, W, 3) uint8, or uint16 for a file with 16 bits per channel. The full range is used.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        icc_profile: the colour profile of ``rgb``. None means sRGB.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None

    @property
    def bit_depth(self) -> int:
        """The bits per channel, 8 or 16."""
        return self.rgb.dtype.itemsize * 8

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def resized(self, width: int, height: int) -> RGBImage:
        """Return the image, with its alpha, at another size; see :func:`resize`."""
        alpha = None if self.alpha is None else resize(self.alpha, width, height)
        return replace(self, rgb=resize(self.rgb, width, height), alpha=alpha)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W[, C]) of any dtype: area averages when shrinking, Lanczos when growing."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(image, (width, height), interpolation=mode)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert uint8 or uint16 to uint8, rounded to the nearest level."""
    if image.dtype == np.uint8:
        return image
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
