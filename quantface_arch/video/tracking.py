"""Following faces from frame to frame, so that they are cut out without a jitter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from quantface_arch.faces.align import TEMPLATE, invert, similarity
from quantface_arch.faces.face import Face

__all__ = ["HALF", "FollowedFrame", "follow"]

# A place is the mean of this many frames before, the frame's own, and as many after it.
HALF = 3
# Of two boxes in neighbouring frames, intersection over union, to be of one face.
_MIN_OVERLAP = 0.3
# Mean difference of two frames' grey levels, of 255, from which on they are of different scenes.
_CUT_LEVELS = 30
_THUMBNAIL = (64, 36)


@dataclass(frozen=True)
class FollowedFrame:
    """A frame with its faces where they are after smoothing.

    Attributes:
        rgb: (H, W, 3) uint8.
        faces: with five landmarks each, those of the template at its smoothed place.
        matrices: of each face, (2, 3), from the frame to its aligned frame.
    """

    rgb: np.ndarray
    faces: list[Face]
    matrices: list[np.ndarray]


@dataclass
class _Track:
    """One face through one scene: frame number → (11,) box, placement (2, 3) and score."""

    first: int
    last: int
    rows: dict[int, np.ndarray]
    open: bool = True

    def add(self, number: int, row: np.ndarray) -> None:
        """Append a frame; those in which the face was missed are interpolated."""
        gap = number - self.last
        before = self.rows[self.last]
        for step in range(1, gap + 1):
            self.rows[self.last + step] = before + (row - before) * (step / gap)
        self.last = number

    def smoothed(self, number: int, half: int) -> np.ndarray:
        # As many frames after as before, so that steady motion is met exactly at the ends, too.
        reach = min(half, number - self.first, self.last - number)
        return np.mean([self.rows[n] for n in range(number - reach, number + reach + 1)], axis=0)


@dataclass
class _Tracks:
    half: int
    tracks: list[_Track] = field(default_factory=list)

    def add(self, number: int, faces: list[Face]) -> None:
        """Match a frame's faces to the tracks by overlap, best first over all; others begin one."""
        rows = [_row(face) for face in faces]
        able = [t for t in self.tracks if t.open and number - t.last - 1 <= self.half]
        overlap = np.array([[_overlap(t.rows[t.last], row) for row in rows] for t in able])
        matched = set()
        if overlap.size:
            for track, place in zip(*linear_sum_assignment(-overlap), strict=True):
                if overlap[track, place] >= _MIN_OVERLAP:
                    able[track].add(number, rows[place])
                    matched.add(place)
        new = [row for place, row in enumerate(rows) if place not in matched]
        self.tracks += [_Track(number, number, {number: row}) for row in new]

    def close(self) -> None:
        """A cut: faces of the next frame are others, wherever they are."""
        for track in self.tracks:
            track.open = False

    def take(self, number: int) -> list[np.ndarray]:
        """The smoothed rows of a frame, from left to right; then forget what is behind it."""
        present = [t for t in self.tracks if t.first <= number <= t.last]
        rows = [track.smoothed(number, self.half) for track in present]
        self.tracks = [t for t in self.tracks if t.last >= number]
        for track in self.tracks:
            track.rows.pop(number - self.half - 1, None)
        return sorted(rows, key=lambda row: row[0] + row[2])


def follow(
    frames: Iterable[tuple[np.ndarray, list[Face]]], half: int = HALF
) -> Iterator[FollowedFrame]:
    """Smooth the places of faces over time; a frame comes out ``half`` frames after it went in.

    Faces are matched by the overlap of their boxes. A place, the similarity that puts the template
    into the frame, becomes the mean over ``2 * half + 1`` frames around it, which follows steady
    motion without delay; fewer at the ends of a track. A face that is missed in up to ``half``
    frames is interpolated there. Nothing is carried over a cut.

    Args:
        frames: (H, W, 3) uint8 RGB with the faces found in it.
        half: 0 smooths nothing.
    """
    tracks, waiting, previous, number = _Tracks(half), deque(), None, -1
    for number, (rgb, faces) in enumerate(frames):
        thumbnail = _thumbnail(rgb)
        if previous is not None and np.abs(thumbnail - previous).mean() > _CUT_LEVELS:
            tracks.close()
        previous = thumbnail
        tracks.add(number, faces)
        waiting.append(rgb)
        if len(waiting) > half:
            yield _followed(waiting.popleft(), tracks.take(number - half))
    for late in range(number + 1 - len(waiting), number + 1):
        yield _followed(waiting.popleft(), tracks.take(late))


def _row(face: Face) -> np.ndarray:
    return np.concatenate([face.box, invert(similarity(face.landmarks)).ravel(), [face.score]])


def _followed(rgb: np.ndarray, rows: list[np.ndarray]) -> FollowedFrame:
    places = [row[4:10].reshape(2, 3) for row in rows]
    faces = [
        Face(row[:4], TEMPLATE @ place[:, :2].T + place[:, 2], float(row[10]))
        for row, place in zip(rows, places, strict=True)
    ]
    return FollowedFrame(rgb, faces, [invert(place) for place in places])


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two rows' boxes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])
    shared = np.prod(np.maximum(high - low, 0))
    areas = np.prod(one[2:4] - one[:2]) + np.prod(other[2:4] - other[:2])
    return float(shared / max(areas - shared, 1e-9))


def _thumbnail(rgb: np.ndarray) -> np.ndarray:
    small = cv2.resize(rgb, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
