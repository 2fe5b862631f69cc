"""Restoring the faces of clips: read, follow, restore, write."""

__all__ = ["SUFFIXES"]

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp"})
