"""Detect faces at several sizes of one image, and merge what the passes find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np

from quantface_arch.faces.face import Face
from quantface_arch.faces.geometry import Look, fit, look_closer, turn
from quantface_arch.utils.images import to_uint8

__all__ = ["detect_in_passes", "merge", "shrink"]

# Two boxes whose intersection over union is larger show the same face.
_MAX_OVERLAP = 0.4
# A box with a larger share of its area inside a better face is a fragment of that face.
_MAX_INSIDE = 0.6
# Smaller faces have too little detail to be told from patterns.
_SMALLEST = 10.0
# An image is shrunk to this longer side, in pixels, before it is turned and searched again.
_TURNED_SIDE = 640


def detect_in_passes(
    rgb: np.ndarray,
    look: Look,
    long_sides: Sequence[int],
    sizes: tuple[float, float],
    scores: tuple[float, float],
) -> list[Face]:
    """Find the faces of an image of any size with a network that knows a range of face sizes.

    The network sees the image once for each of ``long_sides``. A pass keeps only faces whose
    size it is good at. The finest pass keeps smaller faces too, down to 10 pixels, and the
    coarsest keeps larger ones, because no other pass sees them better. Faces with a low score or
    with landmarks unlike an upright face's are looked at again, turned. If there is no face, a
    small image is searched at twice its size, and then any image turned by 90, 180 and 270 degrees.

    Args:
        rgb: upright (H, W, 3) uint8 or uint16.
        look: finds faces in an (H, W, 3) uint8 image, in that image's pixels.
        long_sides: longer side of the image in each pass, in pixels, ascending. An image is
            not enlarged, and no size is searched twice.
        sizes: smallest and largest face that ``look`` places well, in pixels of a pass; the size
            of a face is the square root of its box's area.
        scores: lowest score that a second look, or the mean of both looks, must reach; and the
            score from which a face with the landmarks of an upright one needs no second look.

    Returns:
        Every face once, in pixels of ``rgb``, from left to right.
    """
    faces = _all_passes(rgb, look, long_sides, sizes) or _twice_as_large(rgb, look)
    if not faces:
        faces = _on_other_sides(rgb, look)
    kept = merge([seen for face in faces for seen in _looked_again(rgb, face, look, *scores)])
    return sorted(kept, key=lambda face: face.box[0] + face.box[2])


def _looked_again(
    rgb: np.ndarray, face: Face, look: Look, lowest: float, sure: float
) -> Iterator[Face]:
    """Yield a face as a second look shows it, unless it needs none or is no face then."""
    if face.score >= sure and fit(face).is_sure:
        yield face
        return
    closer = look_closer(rgb, face, look)
    # In a second look, wheels score lower than before, and turned faces score higher. Half profiles
    # score lower, too, but their first score was high enough to lift the mean.
    if closer.score and max(closer.score, (face.score + closer.score) / 2) >= lowest:
        yield closer


def _twice_as_large(rgb: np.ndarray, look: Look) -> list[Face]:
    """Return the faces of a small image at twice its size; none if the image is larger."""
    if 2 * max(rgb.shape[:2]) > _TURNED_SIDE:
        return []
    faces = look(cv2.resize(to_uint8(rgb), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    return [_shrunk(face, 2) for face in faces if face.size >= 2 * _SMALLEST]


def _on_other_sides(rgb: np.ndarray, look: Look) -> list[Face]:
    """Turn an image by 90, 180 and 270 degrees; return the faces of the view with the best one."""
    small, factor = shrink(rgb, _TURNED_SIDE)

    def faces(quarters: int) -> list[Face]:
        matrix = _quarter_turn(small.shape[1], small.shape[0], quarters, factor)
        seen = look(np.ascontiguousarray(np.rot90(small, quarters)))
        return [turn(face, matrix) for face in seen if face.size >= _SMALLEST]

    views = [faces(quarters) for quarters in (1, 2, 3)]
    return max(views, key=lambda view: max((face.score for face in view), default=0.0))


def _all_passes(
    rgb: np.ndarray,
    look: Look,
    long_sides: Sequence[int],
    sizes: tuple[float, float],
) -> list[Face]:
    found: list[Face] = []
    for number, long_side in enumerate(long_sides):
        small, factor = shrink(rgb, long_side)
        finest = factor == 1 or number == len(long_sides) - 1
        low = _SMALLEST if finest else sizes[0]
        high = np.inf if number == 0 else sizes[1]
        for face in look(small):
            if low <= face.size <= high:
                found.append(_shrunk(face, factor))
        if finest:
            break
    return merge(found)


def merge(faces: Sequence[Face]) -> list[Face]:
    """Return every face once and none of its fragments, best score first.

    Faces whose intersection over union with a better one exceeds 0.4 are the same face: box and
    landmarks are averaged, and the best score is kept. Averaging reduces the error of the
    landmarks in blurred images. A face is a fragment, and is dropped, if more than 60 % of its
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
    landmarks = np.mean([face.landmarks for face in group], axis=0)
    return replace(group[0], box=box, landmarks=landmarks)


def _common(one: Face, other: Face) -> float:
    low = np.maximum(one.box[:2], other.box[:2])
    high = np.minimum(one.box[2:], other.box[2:])
    return float(np.prod(np.maximum(high - low, 0)))


def _overlap(one: Face, other: Face) -> float:
    common = _common(one, other)
    return common / (one.size**2 + other.size**2 - common)


def _is_fragment(face: Face, better: Face) -> bool:
    return better.size > face.size and _common(face, better) > _MAX_INSIDE * face.size**2


def _shrunk(face: Face, factor: float) -> Face:
    """Return a face in pixels of an image that is smaller by ``factor``."""
    return replace(face, box=face.box / factor, landmarks=face.landmarks / factor)


def _quarter_turn(width: int, height: int, quarters: int, factor: float) -> np.ndarray:
    """Return the (2, 3) map from ``numpy.rot90`` of a shrunk image to the image itself."""
    last_x, last_y = width - 1, height - 1
    back = {
        1: [[0, -1, last_x], [1, 0, 0]],
        2: [[-1, 0, last_x], [0, -1, last_y]],
        3: [[0, 1, 0], [-1, 0, last_y]],
    }
    return np.array(back[quarters], np.float64) / factor


def shrink(rgb: np.ndarray, long_side: int) -> tuple[np.ndarray, float]:
    """Return a uint8 copy no longer than ``long_side`` and the factor it was shrunk by (<= 1)."""
    height, width = rgb.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return to_uint8(rgb), factor
