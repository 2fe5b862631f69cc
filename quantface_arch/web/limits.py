"""Define limits on the requests that the page accepts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits that keep one visitor from occupying the whole machine.

    Attributes:
        max_mb: largest uploaded file, in megabytes (10⁶ bytes).
        max_side: largest side of an image, in pixels.
        max_faces: most faces in one image.
        max_users: most requests that are pending or running; further ones are refused.
        keep_minutes: time after which uploads and results are deleted.
    """

    max_mb: float = 20.0
    max_side: int = 6000
    max_faces: int = 20
    max_users: int = 16
    keep_minutes: float = 15.0

    @property
    def max_bytes(self) -> int:
        """Largest uploaded file, in bytes."""
        return int(self.max_mb * 1e6)
