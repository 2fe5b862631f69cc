"""Restoring photographs and videos: what ``inference/restore.py`` does."""
