"""Read what an image file says besides its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from quantface_arch.utils.images.chunks import Chunk, read_chunks
from quantface_arch.utils.images.colors import apply_gamma, color_chunks, gamma_of, is_rgb_profile
from quantface_arch.utils.images.metadata import metadata_chunks
from quantface_arch.utils.images.pixels import orientation_of, upright
from quantface_arch.utils.images.rgb_image import RGBImage

__all__ = ["Description"]


@dataclass(frozen=True)
class Description:
    """What a file says about its pixels: how they are turned, what they mean, and metadata.

    Attributes:
        orientation: the EXIF orientation.
        gamma: exponent of the values of a PNG, or None; see ``colors.gamma_of``.
        icc_profile, color_chunks, metadata: as in ``RGBImage``.
    """

    orientation: Any
    gamma: float | None
    icc_profile: bytes | None
    color_chunks: tuple[Chunk, ...]
    metadata: tuple[Chunk, ...]

    @classmethod
    def of(cls, image: Image.Image, data: bytes = b"") -> Description:
        """Read the description of an opened file.

        Args:
            image: the opened file.
            data: the file's bytes if it is a PNG file.
        """
        profile, chunks = image.info.get("icc_profile"), list(read_chunks(data))
        return cls(
            orientation_of(image),
            gamma_of(chunks),
            profile if is_rgb_profile(profile) else None,
            color_chunks(chunks),
            metadata_chunks(image, chunks),
        )

    def image(self, rgb: np.ndarray, alpha: np.ndarray | None) -> RGBImage:
        """Return the pixels of the file, given as stored, as an upright image."""
        return RGBImage(
            apply_gamma(upright(rgb, self.orientation), self.gamma),
            None if alpha is None else upright(alpha, self.orientation),
            self.icc_profile,
            self.color_chunks,
            self.metadata,
        )
