"""Image files: PNG, JPEG, WebP and BMP, with alpha, profile, 16 bits and EXIF rotation.

The rest of the package sees only upright RGB arrays. An image's size is read from its header and
checked before any pixel is decoded, so a small file cannot claim all memory.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.utils.files import atomic_path, open_file, read_bytes
from quantface_arch.utils.limits import MAX_PIXELS
from quantface_arch.utils.rgb_image import RGBImage, resize, to_uint8

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_OUTPUT_PIXELS",
    "MAX_PIXELS",
    "MAX_SCANS",
    "MIN_SIDE",
    "SUFFIXES",
    "RGBImage",
    "decode_rgb",
    "find_images",
    "from_pil",
    "load_rgb",
    "read_image",
    "read_size",
    "resize",
    "to_uint8",
    "write_image",
]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"})
MIN_SIDE = 16
# An uncompressed image with MAX_PIXELS, alpha and 16 bits has 800 MB.
MAX_FILE_BYTES = 1 << 30
MAX_OUTPUT_PIXELS = 400_000_000
# Encoders write about ten scans.
MAX_SCANS = 100

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_EXIF_ORIENTATION = 0x0112
_JPEG_SCAN = b"\xff\xda"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE_OFFSET = 16
_PNG_DEPTH_OFFSET = 24  # signature 8, chunk length and name 8, width and height 8
_PNG_HEADER_END = 33  # the IHDR chunk with its checksum
_PILLOW_LIMIT = threading.Lock()


def load_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright, without alpha and profile.

    Raises:
        QuantFaceError: see :func:`read_image`.
    """
    return to_uint8(read_image(path).rgb)


def read_image(path: str | os.PathLike[str], max_side: int | None = None) -> RGBImage:
    """Read a PNG, JPEG, WebP or BMP file, turned upright by its EXIF orientation.

    Grey images become RGB. A profile that does not describe RGB, such as that of a grey or CMYK
    file, is dropped together with its colour space. Of an animation only the first frame is read.

    Args:
        path: the file.
        max_side: the greatest length of the longer side in pixels, or None for no such limit.

    Raises:
        QuantFaceError: the file is missing, not regular, larger than ``MAX_FILE_BYTES``, empty,
            truncated, corrupt or of another format. Or the image has a side below 16 pixels, more
            than 100 megapixels, or a side above ``max_side``; this is checked in the header alone.
    """
    return _checked(Path(path), read_bytes(path, MAX_FILE_BYTES), max_side)


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of an image file as ``load_rgb`` does; ``name`` is for error messages."""
    return to_uint8(_checked(Path(name), data).rgb)


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
    return _upright_image(_orientation(image), image.info, *_decode_8bit(image))


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files in and below a folder, sorted; links are followed.

    Hidden files, such as the ``._`` files that macOS leave beside images, are left out.
    """
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=str)


def _checked(path: Path, data: bytes, max_side: int | None = None) -> RGBImage:
    if not data:
        raise QuantFaceError(f"{path}: empty file (0 bytes)")
    with _readable(path), _open(io.BytesIO(data)) as image:
        _check_size(path, *image.size, max_side)
        _check_scans(path, data, image)
        return _decode(data, image)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the (width, height) in pixels of an image as stored, from its header.

    Raises:
        QuantFaceError: see :func:`read_image`. Damage behind the header is not detected.
    """
    path = Path(path)
    with open_file(path) as file, _readable(path), _open(file) as image:
        _check_size(path, *image.size)
        return image.size


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except QuantFaceError:
        raise
    except Exception as error:
        # Decoders raise almost any type of exception on damaged files.
        reason = one_line(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a PNG, JPEG, WebP or BMP image, or its header is damaged"
        raise QuantFaceError(f"{path}: cannot be read: {reason}") from error


def _open(file: BinaryIO) -> Image.Image:
    # Pillow's own limit would raise without stating the size. Our check follows immediately.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(path: Path, width: int, height: int, max_side: int | None = None) -> None:
    if min(width, height) < MIN_SIDE:
        raise QuantFaceError(
            f"{path}: {width}x{height} pixels: at least {MIN_SIDE}x{MIN_SIDE} are needed"
        )
    if width * height > MAX_PIXELS:
        raise QuantFaceError(
            f"{path}: {width}x{height} pixels ({width * height / 1e6:.0f} megapixels): "
            f"at most {MAX_PIXELS // 10**6} megapixels are allowed"
        )
    if max_side is not None and max(width, height) > max_side:
        raise QuantFaceError(
            f"{path}: {width}x{height} pixels: at most {max_side} on the longer side are allowed"
        )


def _check_scans(path: Path, data: bytes, image: Image.Image) -> None:
    # Each scan of a progressive JPEG passes over the whole image, however few bytes it has.
    scans = data.count(_JPEG_SCAN) if image.format in ("JPEG", "MPO") else 0
    if scans > MAX_SCANS:
        raise QuantFaceError(f"{path}: {scans} scans of JPEG: at most {MAX_SCANS} are allowed")


def _decode(data: bytes, image: Image.Image) -> RGBImage:
    # The decoder of 16-bit images closes the file.
    orientation, info = _orientation(image), dict(image.info)
    deep = image.format == "PNG" and data[_PNG_DEPTH_OFFSET] == 16
    rgb, alpha = _decode_deep(data, image) if deep else _decode_8bit(image)
    return _upright_image(orientation, info, rgb, alpha)


def _orientation(image: Image.Image) -> Any:
    return image.getexif().get(_EXIF_ORIENTATION, 1)


def _upright_image(
    orientation: Any, info: Mapping[Any, Any], rgb: np.ndarray, alpha: np.ndarray | None
) -> RGBImage:
    profile = info.get("icc_profile")
    return RGBImage(
        rgb=np.ascontiguousarray(_upright(rgb, orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation)),
        icc_profile=profile if profile and profile[16:20] == b"RGB " else None,
    )


def _decode_8bit(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    if "A" in image.getbands() or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3], pixels[..., 3]
    return np.asarray(image.convert("RGB")), None


def _decode_deep(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    # Pillow reduces 16-bit colour to 8 bits, and OpenCV does not. OpenCV, however, completes
    # truncated files silently, so Pillow must read the file first.
    size = image.size
    if struct.unpack_from(">II", data, _PNG_SIZE_OFFSET) != size:
        raise ValueError("two headers that contradict each other")
    image.load()
    image.close()
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("damaged 16-bit PNG data")
    if pixels.dtype != np.uint16 or pixels.shape[1::-1] != size:
        raise ValueError("two headers that contradict each other")
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2), None
    return pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None


def _upright(image: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo an EXIF orientation from 1 to 8; any other value counts as 1."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def write_image(path: str | os.PathLike[str], image: RGBImage) -> None:
    """Write a PNG with the image's bit depth, alpha and profile, completely or not at all.

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


def _encode_png(image: RGBImage) -> bytes:
    channels = [image.rgb[..., ::-1]]
    if image.alpha is not None:
        channels.append(image.alpha[..., None])
    done, encoded = cv2.imencode(".png", np.concatenate(channels, axis=2))
    if not done:
        raise QuantFaceError("OpenCV could not encode it as PNG")
    data = encoded.tobytes()
    if image.icc_profile is None:
        return data
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(image.icc_profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:_PNG_HEADER_END] + chunk + data[_PNG_HEADER_END:]
