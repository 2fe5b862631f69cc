"""Decode the pixels of an opened image file."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image

from quantface_arch.utils.images.colors import convert_gray, to_rgb

__all__ = ["decode_8bit", "decode_pixels", "orientation_of", "upright"]

_EXIF_ORIENTATION = 0x0112
_PNG_SIZE_OFFSET = 16
_PNG_DEPTH_OFFSET = 24  # signature 8, chunk length and name 8, width and height 8
_TIFF_BITS = 0x0102


def decode_pixels(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the pixels of a file as stored: (H, W, 3) RGB, and (H, W) alpha or None.

    Both are uint16 if a PNG, TIFF or grey file has 16 bits per channel, else uint8.

    Args:
        data: the file's bytes.
        image: the same file, opened.

    Raises:
        ValueError: the pixels have more than 16 bits or contradict the header. Decoders raise
            almost any other exception on damaged files.
    """
    if _is_deep(data, image):
        return _decode_deep(data, image)
    if image.mode.startswith(("I", "F")):
        profile = image.info.get("icc_profile")
        return convert_gray(_gray_16bit(image), profile), None
    return decode_8bit(image)


def decode_8bit(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the (H, W, 3) uint8 RGB and the (H, W) uint8 alpha, or None, of an open image."""
    if "A" in image.getbands() or "transparency" in image.info:
        whole = image.convert("RGBA")
        rgb = to_rgb(image) if image.mode == "LA" else whole.convert("RGB")
        return np.asarray(rgb), np.asarray(whole)[..., 3]
    return np.asarray(to_rgb(image)), None


def orientation_of(image: Image.Image) -> Any:
    """Return the EXIF orientation of an open image; anything but 1 to 8 counts as 1."""
    return image.getexif().get(_EXIF_ORIENTATION, 1)


def upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo an EXIF orientation; see :func:`orientation_of`."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _is_deep(data: bytes, image: Image.Image) -> bool:
    if image.format == "PNG":
        return data[_PNG_DEPTH_OFFSET] == 16
    if image.format == "TIFF" and image.mode in ("RGB", "RGBA"):
        return getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,))[0] == 16
    return False


def _decode_deep(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    # Pillow reduces 16-bit colour to 8 bits, and OpenCV does not. OpenCV, however, completes
    # truncated files silently, so Pillow must read the file first.
    size, profile = image.size, image.info.get("icc_profile")
    if image.format == "PNG" and struct.unpack_from(">II", data, _PNG_SIZE_OFFSET) != size:
        raise ValueError("its two headers contradict each other")
    image.load()
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("damaged 16-bit data")
    if pixels.dtype != np.uint16 or pixels.shape[1::-1] != size:
        raise ValueError("its two headers contradict each other")
    if pixels.ndim == 2:
        return convert_gray(pixels, profile), None
    return pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None


def _gray_16bit(image: Image.Image) -> np.ndarray:
    levels = np.asarray(image)
    if levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > 0xFFFF:
        raise ValueError("more than 16 bits per channel; save it with 8 or 16")
    return levels.astype(np.uint16)
