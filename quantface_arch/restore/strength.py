"""Decide how strongly each face is restored, and mix it with its original accordingly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import similarity, warp_face
from quantface_arch.faces.choices import AUTO_STRENGTH
from quantface_arch.faces.degraded import needed_strength
from quantface_arch.faces.face import Face
from quantface_arch.restore.accepted import check_range
from quantface_arch.video.tracking import Measure

__all__ = ["Strengths", "blend", "check_strength", "face_strengths", "gentle_line", "need_of"]

# Strengths below the wanted one are tried in steps of 1/100.
_STEPS = 100
# A face of at most this strength stays nearly as it is.
_GENTLE = 0.05

# Such a function maps an aligned face, (512, 512, 3), to an embedding of length 1.
Embed = Callable[[np.ndarray], np.ndarray]


def check_strength(strength: float | str, identity: float | None = None) -> None:
    """Check the strength of a restoration, and the limit on a face's change.

    Raises:
        QuantFaceError: the strength is neither ``auto`` nor a number from 0 to 1, or the limit is
            neither None nor such a number.
    """
    if identity is not None:
        check_range("identity", identity, 0, 1)
    if isinstance(strength, str):
        if strength != AUTO_STRENGTH:
            raise QuantFaceError(
                f"strength: found {strength!r}, expected a number from 0 to 1, or {AUTO_STRENGTH}"
            )
    else:
        check_range("strength", strength, 0, 1)


def blend(before: np.ndarray, after: np.ndarray, strength: float) -> np.ndarray:
    """Return ``before`` at strength 0, ``after`` at 1, and a rounded mixture in between."""
    if strength == 1:
        return after
    mixed = before + np.float32(strength) * (after.astype(np.float32) - before)
    return np.rint(mixed).astype(before.dtype)


def face_strengths(
    crops: Sequence[np.ndarray],
    restored: Sequence[np.ndarray],
    strength: float | str,
    identity: float | None = None,
    embed: Embed | None = None,
    needed: Sequence[float] | None = None,
) -> list[float]:
    """Return the strength of every face, 0 to 1.

    Args:
        crops: aligned faces, (512, 512, 3) in uint8 or uint16.
        restored: the same faces after restoration.
        strength: a number for all faces; ``auto`` takes what each face needs.
        identity: least cosine between the embeddings of a face and of its blended result; where it
            would be lower, the strength is. None has no limit.
        embed: embeds a face; required by ``identity``.
        needed: what each face needs, if it is known already.
    """
    if strength != AUTO_STRENGTH:
        wanted: Sequence[float] = [float(strength)] * len(crops)
    else:
        wanted = [needed_strength(crop) for crop in crops] if needed is None else needed
    if identity is None or embed is None:
        return list(wanted)
    faces = zip(crops, restored, wanted, strict=True)
    return [_limited(before, after, most, identity, embed) for before, after, most in faces]


def _limited(
    before: np.ndarray, after: np.ndarray, most: float, identity: float, embed: Embed
) -> float:
    """Return the largest strength that keeps the identity, by bisection in steps of 1/100."""
    own = embed(before)

    def keeps(strength: float) -> bool:
        return float(embed(blend(before, after, strength)) @ own) >= identity

    if most == 0 or keeps(most):
        return most
    kept, lost = 0, math.ceil(most * _STEPS)
    while lost - kept > 1:
        middle = (kept + lost) // 2
        kept, lost = (middle, lost) if keeps(middle / _STEPS) else (kept, middle)
    return kept / _STEPS


def need_of(strength: float | str) -> Measure | None:
    """Return the function that measures what a face of a video needs; None for a number."""
    return _need_in if strength == AUTO_STRENGTH else None


def _need_in(rgb: np.ndarray, face: Face) -> float:
    return needed_strength(warp_face(rgb, similarity(face.landmarks)))


@dataclass
class Strengths:
    """Figures of the strengths of an image's faces, or of the faces in all frames of a video.

    Attributes:
        count: number of faces.
        gentle: faces that stay nearly as they are.
        least, most, total: the smallest and the greatest strength, and the sum of all.
    """

    count: int = 0
    gentle: int = 0
    least: float = 1.0
    most: float = 0.0
    total: float = 0.0

    def add(self, strengths: Iterable[float]) -> None:
        """Add the strengths of some faces."""
        for strength in strengths:
            self.count += 1
            self.gentle += strength <= _GENTLE
            self.least, self.most = min(self.least, strength), max(self.most, strength)
            self.total += strength

    def summary(self) -> dict[str, float]:
        """Return the smallest, the mean and the greatest strength; empty without faces."""
        if not self.count:
            return {}
        found = {"least": self.least, "mean": self.total / self.count, "most": self.most}
        return {name: round(value, 3) for name, value in found.items()}


def gentle_line(faces: int) -> str:
    """Return how many faces stay nearly as they are, as part of a summary."""
    return f"{faces} faces kept nearly as they are (sharp already; --strength 1 replaces them)"
