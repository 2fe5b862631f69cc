"""Detect faces, align them, and paste restored faces back into their image."""
