"""Apply what an image file says about its colours: profile, gamma and primaries."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from quantface_arch.utils.images.chunks import Chunk

__all__ = ["apply_gamma", "color_chunks", "convert_gray", "gamma_of", "is_rgb_profile", "to_rgb"]

_SPACE = slice(16, 20)  # the colour space in the header of a profile
_SPACES = {"L": b"GRAY", "LA": b"GRAY", "CMYK": b"CMYK"}
# Each of these chunks makes gAMA and cHRM void.
_STRONGER = {b"cICP", b"iCCP", b"sRGB"}
# A gAMA chunk holds 100,000 times the exponent. Values within _SAME_GAMMA of this one are sRGB's.
_DISPLAY_GAMMA = 45455
_SAME_GAMMA = 500


def is_rgb_profile(profile: bytes | None) -> bool:
    """Return whether a colour profile describes RGB."""
    return bool(profile) and profile[_SPACE] == b"RGB "


def color_chunks(chunks: list[Chunk]) -> tuple[Chunk, ...]:
    """Return the chunks of a PNG file that say how its colours are displayed.

    A profile is not among them. ``cICP`` takes precedence over a profile, and a profile over
    ``sRGB``; ``gAMA`` and ``cHRM`` count only if there is none of these (PNG specification, third
    edition, 4.3). The returned chunks assume that :func:`apply_gamma` was called.
    """
    kinds = {chunk.kind for chunk in chunks}
    if b"cICP" in kinds:
        return tuple(chunk for chunk in chunks if chunk.kind in (b"cICP", b"mDCV", b"cLLI"))
    if kinds & _STRONGER or b"cHRM" not in kinds:
        return ()
    primaries = next(chunk for chunk in chunks if chunk.kind == b"cHRM")
    return Chunk(b"gAMA", struct.pack(">I", _DISPLAY_GAMMA)), primaries


def gamma_of(chunks: list[Chunk]) -> float | None:
    """Return the exponent with which a PNG encodes light, or None if it is that of displays."""
    if {chunk.kind for chunk in chunks} & _STRONGER:
        return None
    body = next((chunk.body for chunk in chunks if chunk.kind == b"gAMA"), b"")
    value = int.from_bytes(body, "big")
    if not value or abs(value - _DISPLAY_GAMMA) <= _SAME_GAMMA:
        return None
    return value / 100_000


def apply_gamma(rgb: np.ndarray, gamma: float | None) -> np.ndarray:
    """Convert uint8 or uint16 values from a file's exponent, see ``gamma_of``, to a display's."""
    if gamma is None:
        return rgb
    top = np.iinfo(rgb.dtype).max
    levels = np.linspace(0, 1, top + 1) ** (_DISPLAY_GAMMA / 100_000 / gamma)
    return np.rint(levels * top).astype(rgb.dtype)[rgb]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits per channel to RGB.

    RGB values and palettes do not change. Lab is converted to sRGB, and so are grey and CMYK if
    they have a profile of their own. A damaged profile counts as none, as in browsers.

    Raises:
        ValueError: Pillow cannot convert images of this mode.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        return _to_srgb(image, ImageCms.createProfile("LAB"))
    if profile and profile[_SPACE] == _SPACES.get(image.mode):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return _to_srgb(image.convert("L") if image.mode == "LA" else image, source)
        except (OSError, ImageCms.PyCMSError):
            return image.convert("RGB")
    return image.convert("RGB")


def convert_gray(gray: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Return (H, W) uint16 grey as (H, W, 3), in sRGB if it has a grey profile."""
    if profile and profile[_SPACE] == b"GRAY":
        levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        levels.info["icc_profile"] = profile
        curve = np.asarray(to_rgb(levels))[0, :, 1] * 257.0
        gray = np.rint(np.interp(gray, np.arange(256) * 257.0, curve)).astype(np.uint16)
    return np.repeat(gray[..., None], 3, axis=2)


def _to_srgb(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert result is not None  # only conversions in place return None
    return result
