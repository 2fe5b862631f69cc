"""Read image files as upright RGB, with alpha, 16 bits, colour profile and metadata.

An image's size is read from its header and checked before any pixel is decoded, so a small file
cannot claim all memory.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import open_file, read_bytes
from quantface_arch.utils.images.description import Description
from quantface_arch.utils.images.formats import SUFFIXES
from quantface_arch.utils.images.opening import check_scans, check_single, opened
from quantface_arch.utils.images.pixels import decode_8bit, decode_pixels
from quantface_arch.utils.images.rgb_image import RGBImage, to_uint8

__all__ = [
    "MAX_FILE_BYTES",
    "decode_rgb",
    "find_images",
    "from_pil",
    "load_rgb",
    "read_image",
    "read_size",
]

# An uncompressed image with MAX_PIXELS, alpha and 16 bits has 800 MB.
MAX_FILE_BYTES = 1 << 30


def load_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright, without alpha, profile and metadata.

    Raises:
        QuantFaceError: see :func:`read_image`.
    """
    return to_uint8(read_image(path).rgb)


def read_image(path: str | os.PathLike[str], max_side: int | None = None) -> RGBImage:
    """Read an image file and turn it upright according to its EXIF orientation.

    RGB values are left unchanged, and their colour profile is kept. The one exception is a PNG with
    an unusual ``gAMA``, whose values are converted. Grey images become RGB. Grey, CMYK and Lab
    images with a profile are converted to sRGB.

    Args:
        path: the file.
        max_side: the longest allowed side in pixels, or None for no such limit.

    Raises:
        QuantFaceError: the file is missing, not regular, larger than ``MAX_FILE_BYTES``, empty,
            truncated, corrupt, of another format, an animation, or has several pages. It is also
            raised if the header states a side below 16 pixels, more than 100 megapixels, or a side
            above ``max_side``.
    """
    return _decode(Path(path), read_bytes(path, MAX_FILE_BYTES), max_side)


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of an image file as ``load_rgb`` does; ``name`` is for error messages."""
    return to_uint8(_decode(Path(name), data).rgb)


def from_pil(image: Image.Image) -> RGBImage:
    """Return a PIL image of 8 bits per channel, turned upright by its EXIF orientation.

    Raises:
        QuantFaceError: the image has more bits, which Pillow would cut off.
    """
    if image.mode.startswith(("I", "F")):
        raise QuantFaceError(
            f"PIL image of mode {image.mode}: expected 8 bits per channel; "
            "pass 16 bits as an array of uint16"
        )
    return Description.of(image).image(*decode_8bit(image))


def find_images(folder: str | os.PathLike[str], *, recursive: bool = True) -> list[Path]:
    """Return the image files in a folder, sorted; links are followed.

    Hidden files, such as the ``._`` files that macOS leaves beside images, are left out.

    Args:
        folder: the folder.
        recursive: also look into its subfolders.
    """
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths = (Path(root, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=str)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the (width, height) in pixels of an image as stored, from its header.

    Raises:
        QuantFaceError: see :func:`read_image`. Damage behind the header is not detected.
    """
    path = Path(path)
    with open_file(path) as file, opened(path, file) as image:
        return image.size


def _decode(path: Path, data: bytes, max_side: int | None = None) -> RGBImage:
    if not data:
        raise QuantFaceError(f"{path}: empty file (0 bytes)")
    with opened(path, io.BytesIO(data), max_side) as image:
        check_single(path, image)
        check_scans(path, data, image)
        pixels = decode_pixels(data, image)
        # Metadata may follow the pixels, and Pillow turns some formats upright when it reads them.
        description = Description.of(image, data if image.format == "PNG" else b"")
        return description.image(*pixels)
