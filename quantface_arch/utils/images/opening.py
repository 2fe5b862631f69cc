"""Open image files, and check them by their headers before any pixel is decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.utils.images.formats import formats_here, missing_decoder
from quantface_arch.utils.limits import MAX_PIXELS

__all__ = ["MAX_SCANS", "MIN_SIDE", "check_scans", "check_single", "frame_count", "opened"]

MIN_SIDE = 16
# Encoders write about ten scans. More only make decoding slow.
MAX_SCANS = 100
# The frames of these formats are shown one after the other.
_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "WEBP"})

_JPEG_SCAN = b"\xff\xda"
_TIFF_KIND = 0x00FE  # tag of a page's kind
_REDUCED = 1  # flag of a page that is a smaller copy of another
_PILLOW_LIMIT = threading.Lock()


@contextmanager
def opened(path: Path, file: BinaryIO, max_side: int | None = None) -> Iterator[Image.Image]:
    """Open an image and check its size; errors inside the block name the file, too.

    Args:
        path: path of the file, for error messages.
        file: the file's bytes.
        max_side: the greatest length of the longer side in pixels, or None for no such limit.

    Raises:
        QuantFaceError: the file cannot be read, or its image is too small or too large.
    """
    try:
        with _open(file) as image:
            _check_size(path, *image.size, max_side)
            yield image
    except QuantFaceError:
        raise
    except Exception as error:
        # Decoders raise almost any type of exception on damaged files.
        reason = one_line(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            known = ", ".join(formats_here())
            reason = missing_decoder(path.suffix.lower()) or (
                f"not an image of a supported format ({known}), or its header is damaged"
            )
        raise QuantFaceError(f"{path}: cannot be read: {reason}") from error


def frame_count(image: Image.Image) -> int:
    """Return how many frames an open file shows one after the other; 1 if it is no animation."""
    return getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1


def check_single(path: Path, image: Image.Image) -> None:
    """Check that a file holds one image.

    Further images of a JPEG, such as its gain map, and smaller copies in a TIFF do not count.

    Raises:
        QuantFaceError: the file is an animation or has several pages.
    """
    frames = frame_count(image)
    if frames > 1:
        raise QuantFaceError(f"{path}: an animation of {frames} frames: expected a single image")
    if image.format == "TIFF":
        pages = _pages(image)
        if pages > 1:
            raise QuantFaceError(
                f"{path}: {pages} pages: expected one; save each page as a file of its own"
            )


def check_scans(path: Path, data: bytes, image: Image.Image) -> None:
    """Check that a JPEG has no more scans than encoders write.

    Decoding a scan passes over the whole image, however few bytes the scan has.

    Raises:
        QuantFaceError: the file has more than ``MAX_SCANS`` scans.
    """
    scans = data.count(_JPEG_SCAN) if image.format in ("JPEG", "MPO") else 0
    if scans > MAX_SCANS:
        raise QuantFaceError(f"{path}: {scans} scans of JPEG: at most {MAX_SCANS} are allowed")


def _pages(image: Image.Image) -> int:
    pages = 0
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        kind = getattr(image, "tag_v2", {}).get(_TIFF_KIND, 0)
        pages += not kind & _REDUCED
    image.seek(0)
    return pages


def _open(file: BinaryIO) -> Image.Image:
    # Pillow's own limit would raise without stating the size. Our check follows immediately.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats_here())
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
