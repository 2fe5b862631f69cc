"""Limits on files that are not trusted, for modules that must not import OpenCV."""

from __future__ import annotations

__all__ = ["MAX_PIXELS"]

MAX_PIXELS = 100_000_000
