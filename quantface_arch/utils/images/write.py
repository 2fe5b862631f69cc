"""Write images as PNG files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.images.chunks import Chunk, insert_chunks
from quantface_arch.utils.images.rgb_image import RGBImage

__all__ = ["MAX_OUTPUT_PIXELS", "description_chunks", "write_image"]

MAX_OUTPUT_PIXELS = 400_000_000


def write_image(path: str | os.PathLike[str], image: RGBImage) -> None:
    """Write a PNG with the image's bit depth, alpha, colours and metadata, or no file at all.

    The file is RGB even if the image is grey.

    Raises:
        QuantFaceError: ``path`` cannot be written or does not end in ``.png``.
        WriteError: the disk is full or refuses the file.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise QuantFaceError(f"cannot write {path}: images are written as .png")
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode_png(image))


def description_chunks(image: RGBImage) -> list[Chunk]:
    """Return the chunks of all that a PNG file says about an image besides its pixels."""
    chunks = [*image.color_chunks, *image.metadata]
    if image.icc_profile is not None:
        body = b"ICC profile\0\0" + zlib.compress(image.icc_profile)
        chunks.insert(0, Chunk(b"iCCP", body))
    return chunks


def _encode_png(image: RGBImage) -> bytes:
    channels = [image.rgb[..., ::-1]]
    if image.alpha is not None:
        channels.append(image.alpha[..., None])
    done, encoded = cv2.imencode(".png", np.concatenate(channels, axis=2))
    if not done:
        raise QuantFaceError("OpenCV could not encode the image as PNG")
    return insert_chunks(encoded.tobytes(), description_chunks(image))
