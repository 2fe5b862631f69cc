"""Count what a run has restored, and say it in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from quantface_arch.faces.choices import AUTO_STRENGTH
from quantface_arch.restore.strength import Strengths, gentle_line

__all__ = ["Counts"]


@dataclass
class Counts:
    """How many images were restored, written unrestored, or failed.

    Attributes:
        done: images that were written.
        faces: faces that were restored.
        failed: images that failed.
        unrestored: images without a face that were written unchanged.
        gentle: faces that stay nearly as they are, because they are sharp already.
        left_alone: faces that stay unrestored, because no real face can have their landmarks.
        seconds: total time.
    """

    done: int = 0
    faces: int = 0
    failed: int = 0
    unrestored: int = 0
    gentle: int = 0
    left_alone: int = 0
    seconds: float = 0.0

    @classmethod
    def merged(cls, parts: Sequence[Counts]) -> Counts:
        """Return the total of processes that ran at the same time."""
        sums = {
            item.name: sum(getattr(part, item.name) for part in parts)
            for item in fields(cls)
            if item.name != "seconds"
        }
        return cls(**sums, seconds=max(part.seconds for part in parts))

    def add_faces(self, strengths: Strengths, wanted: float | str) -> None:
        """Count faces, given their strengths and the option that they follow."""
        self.faces += strengths.count
        if wanted == AUTO_STRENGTH:
            self.gentle += strengths.gentle

    def results(self) -> list[str]:
        """Return the counts as the parts of a sentence."""
        faces = [f"{self.faces} faces restored"] if self._sought_faces else []
        found = [f"{self.done} images", *faces, f"{self.failed} failed"]
        if self.gentle:
            found.append(gentle_line(self.gentle))
        if self.unrestored:
            found.append(f"{self.unrestored} written unrestored (no face found)")
        if self.left_alone:
            found.append(f"{self.left_alone} faces left unrestored (implausible landmarks)")
        return found

    def pace(self) -> str | None:
        """Return the speed; None if nothing was done."""
        if self.done and not self._sought_faces:
            return f"{self.seconds / self.done:.2f} seconds per image"
        return f"{self.seconds / self.faces:.2f} seconds per face" if self.faces else None

    @property
    def _sought_faces(self) -> bool:
        """Whether faces were looked for: an image without one is then unrestored."""
        return not self.done or bool(self.faces or self.unrestored)

    def summary(self, skipped: int, ignored: int, where: Path) -> str:
        """Return a summary in one line.

        Args:
            skipped: number of inputs that were done before.
            ignored: number of files that are neither images nor videos.
            where: the output folder.
        """
        parts = self.results()
        if skipped:
            parts.append(f"{skipped} skipped (done already)")
        if ignored:
            parts.append(f"{ignored} other files ignored")
        pace = self.pace()
        return f"{', '.join([*parts, *([pace] if pace else [])])}; results in {where}"
