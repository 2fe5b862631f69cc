"""An image in memory: RGB of 8 or 16 bits per channel, with alpha, colour profile and metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from quantface_arch.utils.images.chunks import Chunk

__all__ = ["RGBImage", "resize", "to_uint8"]


@dataclass(frozen=True)
class RGBImage:
    """An upright image.

    Attributes:
        rgb: (H, W, 3) uint8, or uint16 for a file with 16 bits per channel. The full range is used.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        icc_profile: the colour profile of ``rgb``. None means sRGB.
        color_chunks: what a PNG says about the colours of ``rgb`` other than by a profile.
        metadata: EXIF, XMP, texts and resolution, as chunks of PNG.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    color_chunks: tuple[Chunk, ...] = ()
    metadata: tuple[Chunk, ...] = ()

    @property
    def bit_depth(self) -> int:
        """The bits per channel, 8 or 16."""
        return self.rgb.dtype.itemsize * 8

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def visible(self) -> RGBImage:
        """Return the image with the nearest visible colour in each pixel that alpha hides.

        Hidden colours are arbitrary, and filters and networks would spread them to visible pixels.
        """
        if self.alpha is None or self.alpha.all() or not self.alpha.any():
            return self
        hidden = (self.alpha == 0).astype(np.uint8)
        _, labels = cv2.distanceTransformWithLabels(
            hidden, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        colors = np.zeros((int(labels.max()) + 1, 3), self.rgb.dtype)
        shown = hidden == 0
        colors[labels[shown]] = self.rgb[shown]
        return replace(self, rgb=np.where(shown[..., None], self.rgb, colors[labels]))

    def resized(self, width: int, height: int) -> RGBImage:
        """Return the image, with its alpha, at another size; see :func:`resize`."""
        if self.size == (width, height):
            return self
        alpha = None if self.alpha is None else resize(self.alpha, width, height)
        return replace(self, rgb=resize(self.visible().rgb, width, height), alpha=alpha)

    def with_pixels(self, rgb: np.ndarray) -> RGBImage:
        """Return an opaque image of other pixels in the same colour space."""
        return RGBImage(rgb, icc_profile=self.icc_profile, color_chunks=self.color_chunks)


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
