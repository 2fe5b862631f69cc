"""Detection at several sizes of one picture, and the merging of what the passes found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from quantface_arch.faces.face import Face
from quantface_arch.utils.images import to_uint8

__all__ = ["detect_in_passes", "merge", "shrink"]

# Two boxes whose intersection over union is larger show the same face.
_MAX_OVERLAP = 0.4
# A box with a larger share of its area inside a better face is a fragment of that face.
_MAX_INSIDE = 0.6
# Smaller faces have too little detail to be told from patterns.
_SMALLEST = 10.0


def detect_in_passes(
    rgb: np.ndarray,
    look: Callable[[np.ndarray], list[Face]],
    long_sides: Sequence[int],
    sizes: tuple[float, float],
) -> list[Face]:
    """Find the faces of a picture of any size with a network that knows a range of face sizes.

    The network sees the picture once for each of ``long_sides``. A pass keeps only faces whose
    size it is good at. The finest pass keeps smaller faces too, down to 10 pixels, and the
    coarsest keeps larger ones, because no other pass sees them better.

    Args:
        rgb: upright (H, W, 3) uint8 or uint16.
        look: finds faces in an (H, W, 3) uint8 picture, in that picture's pixels.
        long_sides: longer side of the picture in each pass, in pixels, ascending. A picture is
            never enlarged, and no size is looked at twice.
        sizes: smallest and largest face that ``look`` places well, in pixels of a pass; the size
            of a face is the square root of its box's area.

    Returns:
        Every face once, in pixels of ``rgb``, from left to right.
    """
    found: list[Face] = []
    for number, long_side in enumerate(long_sides):
        small, factor = shrink(rgb, long_side)
        finest = factor == 1 or number == len(long_sides) - 1
        low = _SMALLEST if finest else sizes[0]
        high = np.inf if number == 0 else sizes[1]
        for face in look(small):
            if low <= _size(face) <= high:
                found.append(Face(face.box / factor, face.landmarks / factor, face.score))
        if finest:
            break
    return sorted(merge(found), key=lambda face: face.box[0] + face.box[2])


def merge(faces: Sequence[Face]) -> list[Face]:
    """Return every face once and none of its fragments, best score first.

    Faces whose intersection over union with a better one exceeds 0.4 are the same face: box and
    landmarks are averaged, and the best score is kept. Averaging reduces the error of the
    landmarks in blurred pictures. A face is a fragment, and is dropped, if more than 60 % of its
    box lies in the larger box of a better one.
    """
    groups: list[list[Face]] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        same = next((group for group in groups if _overlap(face, group[0]) > _MAX_OVERLAP), None)
        if same is not None:
            same.append(face)
        elif not any(_is_fragment(face, group[0]) for group in groups):
            groups.append([face])
    return [_mean(group) for group in groups]


def _mean(group: Sequence[Face]) -> Face:
    box = np.mean([face.box for face in group], axis=0)
    return Face(box, np.mean([face.landmarks for face in group], axis=0), group[0].score)


def _common(one: Face, other: Face) -> float:
    low = np.maximum(one.box[:2], other.box[:2])
    high = np.minimum(one.box[2:], other.box[2:])
    return float(np.prod(np.maximum(high - low, 0)))


def _overlap(one: Face, other: Face) -> float:
    common = _common(one, other)
    return common / (_size(one) ** 2 + _size(other) ** 2 - common)


def _is_fragment(face: Face, better: Face) -> bool:
    return _size(better) > _size(face) and _common(face, better) > _MAX_INSIDE * _size(face) ** 2


def _size(face: Face) -> float:
    return float(np.sqrt(np.prod(np.maximum(face.box[2:] - face.box[:2], 0))))


def shrink(rgb: np.ndarray, long_side: int) -> tuple[np.ndarray, float]:
    """Return a uint8 copy no longer than ``long_side`` and the factor it was shrunk by (<= 1)."""
    height, width = rgb.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return to_uint8(rgb), factor
