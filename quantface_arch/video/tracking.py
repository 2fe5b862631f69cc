"""Track faces from frame to frame and smooth their positions, so that crops do not jitter."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from quantface_arch.faces.align import TEMPLATE, invert, similarity, transform
from quantface_arch.faces.face import Face

__all__ = ["HALF_WINDOW", "Measure", "TrackedFrame", "track_faces"]

# A placement is averaged over this many frames on either side and the frame itself.
HALF_WINDOW = 3
# Such a function measures a face of a frame: (H, W, 3) pixels and the face to a number.
Measure = Callable[[np.ndarray, Face], float]
# Boxes in neighbouring frames belong to one face if their intersection over union is at least this.
_MIN_OVERLAP = 0.3
# A larger mean difference between the grey levels (0 to 255) of two frames is a cut.
_CUT_LEVELS = 30
_THUMBNAIL = (64, 36)


@dataclass(frozen=True)
class TrackedFrame:
    """A frame of a video with the smoothed placements of its faces.

    Attributes:
        rgb: (H, W, 3) uint8.
        faces: its faces, each with the five landmarks of the template at the smoothed placement.
        matrices: for each face, the (2, 3) map from the frame to the aligned frame.
        measured: for each face, the smoothed value of a measure; None if nothing was measured.
    """

    rgb: np.ndarray
    faces: list[Face]
    matrices: list[np.ndarray]
    measured: list[float] | None = None


@dataclass
class _Track:
    """One face in one scene.

    Attributes:
        first, last: numbers of its first and last frame.
        rows: for each frame number, (12,) values: box, placement (2, 3), score and measure.
        open: whether the face may continue in the next frame.
    """

    first: int
    last: int
    rows: dict[int, np.ndarray]
    open: bool = True

    def add(self, number: int, row: np.ndarray) -> None:
        """Append a frame, and interpolate the frames in which the face was missed."""
        gap = number - self.last
        before = self.rows[self.last]
        for step in range(1, gap + 1):
            self.rows[self.last + step] = before + (row - before) * (step / gap)
        self.last = number

    def smoothed(self, number: int, half: int) -> np.ndarray:
        """Return the mean row around a frame.

        The window is symmetric, so it shrinks near the ends of the track; steady motion is
        therefore reproduced exactly.
        """
        reach = min(half, number - self.first, self.last - number)
        return np.mean([self.rows[n] for n in range(number - reach, number + reach + 1)], axis=0)


@dataclass
class _Tracks:
    """The tracks that are needed by frames not yet returned."""

    half: int
    tracks: list[_Track] = field(default_factory=list)

    def add(self, number: int, faces: list[Face], measured: Sequence[float] | None = None) -> None:
        """Assign faces to tracks by the largest total overlap; the rest start new tracks.

        Args:
            number: number of the frame.
            faces: its faces.
            measured: the value of the measure for each face, if there is one.
        """
        values = [math.nan] * len(faces) if measured is None else measured
        rows = [_row(face, value) for face, value in zip(faces, values, strict=True)]
        candidates = [t for t in self.tracks if t.open and number - t.last - 1 <= self.half]
        overlap = np.array([[_overlap(t.rows[t.last], row) for row in rows] for t in candidates])
        matched = set()
        if overlap.size:
            # Import this late: images need no tracks, and SciPy takes half a second.
            from scipy.optimize import linear_sum_assignment

            for track, index in zip(*linear_sum_assignment(-overlap), strict=True):
                if overlap[track, index] >= _MIN_OVERLAP:
                    candidates[track].add(number, rows[index])
                    matched.add(index)
        new = [row for index, row in enumerate(rows) if index not in matched]
        self.tracks += [_Track(number, number, {number: row}) for row in new]

    def close(self) -> None:
        """End all tracks at a cut, because the next frame shows other faces."""
        for track in self.tracks:
            track.open = False

    def take(self, number: int) -> list[np.ndarray]:
        """Return a frame's smoothed rows from left to right; drop what no later frame needs."""
        present = [t for t in self.tracks if t.first <= number <= t.last]
        rows = [track.smoothed(number, self.half) for track in present]
        self.tracks = [t for t in self.tracks if t.last >= number]
        for track in self.tracks:
            track.rows.pop(number - self.half - 1, None)
        return sorted(rows, key=lambda row: row[0] + row[2])


def track_faces(
    frames: Iterable[tuple[np.ndarray, list[Face]]],
    half: int = HALF_WINDOW,
    measure: Measure | None = None,
) -> Iterator[TrackedFrame]:
    """Smooth the placements of faces over time, ``half`` frames behind the input.

    Faces are matched by the overlap of their boxes. A placement is the similarity that maps the
    template into the frame. It is replaced by the mean over ``2 * half + 1`` frames around it, or
    fewer at the ends of a track; this reproduces steady motion without delay. A face that is missed
    in up to ``half`` frames is interpolated there. Tracks end at a cut.

    Args:
        frames: (H, W, 3) uint8 RGB frames, each with its detected faces. Implausible ones are left
            out.
        half: frames on either side of the window; 0 disables smoothing.
        measure: measures each detected face; its values are smoothed like the placements.

    Yields:
        one frame for each input frame, in order.
    """
    tracks, pending, previous, number = _Tracks(half), deque(), None, -1
    for number, (rgb, faces) in enumerate(frames):
        thumbnail = _thumbnail(rgb)
        if previous is not None and np.abs(thumbnail - previous).mean() > _CUT_LEVELS:
            tracks.close()
        previous = thumbnail
        plausible = [face for face in faces if face.plausible]
        values = None if measure is None else [measure(rgb, face) for face in plausible]
        tracks.add(number, plausible, values)
        pending.append(rgb)
        if len(pending) > half:
            yield _tracked(pending.popleft(), tracks.take(number - half), measure)
    for late in range(number + 1 - len(pending), number + 1):
        yield _tracked(pending.popleft(), tracks.take(late), measure)


def _row(face: Face, measured: float) -> np.ndarray:
    """Return the row of a track for a face."""
    placement = invert(similarity(face.landmarks)).ravel()
    return np.concatenate([face.box, placement, [face.score, measured]])


def _tracked(rgb: np.ndarray, rows: list[np.ndarray], measure: Measure | None) -> TrackedFrame:
    placements = [row[4:10].reshape(2, 3) for row in rows]
    faces = [
        Face(row[:4], transform(TEMPLATE, placement), float(row[10]))
        for row, placement in zip(rows, placements, strict=True)
    ]
    matrices = [invert(placement) for placement in placements]
    measured = None if measure is None else [float(row[11]) for row in rows]
    return TrackedFrame(rgb, faces, matrices, measured)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two rows' boxes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])
    shared = np.prod(np.maximum(high - low, 0))
    areas = np.prod(one[2:4] - one[:2]) + np.prod(other[2:4] - other[:2])
    return float(shared / max(areas - shared, 1e-9))


def _thumbnail(rgb: np.ndarray) -> np.ndarray:
    small = cv2.resize(rgb, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
