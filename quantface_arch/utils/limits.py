"""Define limits on untrusted inputs, for modules that must not import OpenCV."""

from __future__ import annotations

__all__ = ["MAX_PIXELS", "MAX_UPSCALE"]

MAX_PIXELS = 100_000_000
# An image may be enlarged at most this many times along each side.
MAX_UPSCALE = 8
