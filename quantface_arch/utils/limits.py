"""Limits on inputs that are not trusted, for modules that must not import OpenCV."""

from __future__ import annotations

__all__ = ["MAX_PIXELS", "MAX_UPSCALE"]

MAX_PIXELS = 100_000_000
# How often an image may be enlarged along each side.
MAX_UPSCALE = 8
