"""Restore the faces in images and videos, as ``inference/restore.py`` does."""
