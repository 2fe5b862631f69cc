"""List the formats of image files that can be read, and their suffixes."""

from __future__ import annotations

import functools

from PIL import features

__all__ = ["FORMATS", "FORMAT_NAMES", "SUFFIXES", "formats_here", "missing_decoder"]

# Each format has Pillow's name and the suffixes of its files.
FORMATS = {
    "AVIF": frozenset({".avif", ".avifs"}),
    "BMP": frozenset({".bmp", ".dib"}),
    "GIF": frozenset({".gif"}),
    "HEIF": frozenset({".heic", ".heif", ".hif"}),
    "JPEG": frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}),
    "JPEG2000": frozenset({".jp2", ".j2k", ".jpf", ".jpx"}),
    "PNG": frozenset({".png", ".apng"}),
    "PPM": frozenset({".pbm", ".pgm", ".pnm", ".ppm"}),
    "TIFF": frozenset({".tif", ".tiff"}),
    "WEBP": frozenset({".webp"}),
}
SUFFIXES = frozenset[str]().union(*FORMATS.values())
FORMAT_NAMES = ", ".join(FORMATS)


@functools.cache
def formats_here() -> tuple[str, ...]:
    """Return the formats that this installation can read, after registering their decoders."""
    return tuple(name for name in FORMATS if _is_readable(name))


def missing_decoder(suffix: str) -> str | None:
    """Return how to install the decoder that a suffix needs; None if no decoder is missing.

    Args:
        suffix: the suffix in lower case, with its dot.
    """
    if suffix in FORMATS["HEIF"] and "HEIF" not in formats_here():
        return 'HEIC images need pillow-heif: pip install "pillow-heif"'
    if suffix in FORMATS["AVIF"] and "AVIF" not in formats_here():
        return 'AVIF images need a newer Pillow: pip install "pillow>=11.3"'
    return None


def _is_readable(name: str) -> bool:
    if name == "AVIF":
        # An older Pillow does not know this feature, and would warn.
        return "avif" in features.modules and bool(features.check("avif"))
    if name == "HEIF":
        return _register_heif()
    return True


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
