"""Read and write videos, and track the faces in them."""

__all__ = ["SUFFIXES"]

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp"})
