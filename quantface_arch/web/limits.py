"""What the page accepts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one visitor from taking the whole machine.

    Attributes:
        max_mb: size of an uploaded file, in megabytes (10⁶ bytes).
        max_side: pixels of a picture's longer side.
        max_faces: faces in one picture.
        max_users: requests that wait or are worked on; who comes then is asked to come again.
        keep_minutes: for which uploads and results stay on the disk.
    """

    max_mb: float = 20.0
    max_side: int = 6000
    max_faces: int = 20
    max_users: int = 16
    keep_minutes: float = 15.0

    @property
    def max_bytes(self) -> int:
        """Size of an uploaded file."""
        return int(self.max_mb * 1e6)
