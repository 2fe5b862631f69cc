"""Measure how well five landmarks fit a face, and look again at faces that fit badly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from quantface_arch.faces.align import FACE_SIZE, TEMPLATE, invert, transform, warp
from quantface_arch.faces.face import Face
from quantface_arch.utils.images import to_uint8

__all__ = ["Fit", "Look", "fit", "look_closer", "turn"]

# A function that finds the faces in an (H, W, 3) uint8 image, in that image's pixels.
Look = Callable[[np.ndarray], list[Face]]

# A closer look sees a square of this side, with a face of this size in its middle, in pixels. The
# neighbourhood that is turned is wider, so that its corners stay outside.
_VIEW, _FACE_IN_VIEW, _WIDE = 224, 88, 320
# Views are _STEP degrees apart. A face tilted by less than _UPRIGHT degrees is not turned further.
_STEP, _UPRIGHT = 45, 1
_REFINEMENTS = 3
# A view shows something else if its score is lower by more than this.
_WORSE = 0.05
# Small faces that are enlarged further become too blurred to be found.
_MOST_ENLARGED = 2
# A face counts only if it is at most this many face sizes away from the middle of the view.
_MOST_OFF_CENTRE = 0.4


@dataclass(frozen=True)
class Fit:
    """How a similarity maps the mean face to five landmarks.

    Attributes:
        angle: clockwise rotation of the face in the image, in degrees from -180 to 180.
        residual: root mean square distance of the landmarks from the mean face's, in pixels of
            the 512×512 frame. Frontal faces have 2 to 10, half profiles up to 30.
        scale: width of the 512×512 frame in multiples of the box's size. Upright faces have 1.4
            to 1.8.
    """

    angle: float
    residual: float
    scale: float

    @property
    def is_sure(self) -> bool:
        """Whether the landmarks are those of an upright face."""
        return abs(self.angle) <= 5 and self.residual <= 14 and 1.3 <= self.scale <= 2.0

    @property
    def is_possible(self) -> bool:
        """Whether a face can have these landmarks."""
        return self.residual <= 40 and 0.9 <= self.scale <= 2.4


def fit(face: Face) -> Fit:
    """Fit the mean face to a face's five landmarks by least squares (Umeyama, PAMI 1991)."""
    # With points as complex numbers, a similarity is z -> a z + b.
    mean, found = (points[:, 0] + 1j * points[:, 1] for points in (TEMPLATE, face.landmarks))
    mean, found = mean - mean.mean(), found - found.mean()
    a = np.vdot(mean, found) / np.vdot(mean, mean).real
    size = max(face.size, 1e-6)
    length = max(abs(a), 1e-6)
    residual = np.sqrt(np.mean(np.abs(found - a * mean) ** 2)) / length
    return Fit(float(np.degrees(np.angle(a))), float(residual), float(FACE_SIZE * length / size))


def look_closer(rgb: np.ndarray, face: Face, look: Look) -> Face:
    """Look at one face again, turned by every multiple of 45 degrees, and keep the best view.

    Detectors place the landmarks of a face that lies on its side or upside down as if it were
    upright, with nearly the score of a true face. When such a face is seen upright, its score is
    higher and its landmarks fit better. Detectors also underestimate a tilt, so the best view is
    turned further until the face in it is upright.

    Args:
        rgb: (H, W, 3) uint8 or uint16 image.
        face: a face in it.
        look: finds faces in an (H, W, 3) uint8 image, in that image's pixels.

    Returns:
        The face of the best view, in pixels of ``rgb``. If the unturned view is best, it is the
        given face with that view's score. The score is 0 if no view shows a face, and
        ``plausible`` is False if no real face can have the landmarks.
    """
    to_view = _to_neighbourhood(face)
    neighbourhood = to_uint8(warp(rgb, to_view, (_WIDE, _WIDE), cv2.BORDER_CONSTANT))
    views = (_seen(neighbourhood, angle, look) for angle in range(0, 360, _STEP))
    seen = max(filter(None, views), key=_quality, default=None)
    if seen is None:
        return replace(face, score=0.0, plausible=False)
    seen = _straighten(neighbourhood, seen, look)
    if seen.angle == 0:
        # The given landmarks may be the mean of several passes, which is more exact.
        return replace(face, score=seen.face.score, plausible=fit(face).is_possible)
    back = invert(_turned(seen.angle) @ np.vstack([to_view, (0, 0, 1)]))
    return replace(turn(seen.face, back), plausible=fit(seen.face).is_possible)


def _straighten(neighbourhood: np.ndarray, seen: _Seen, look: Look) -> _Seen:
    """Turn a view until its face is upright: find the zero of the tilt by the secant method."""
    last, step = seen, 2 * seen.tilt
    for _ in range(_REFINEMENTS):
        if abs(last.tilt) < _UPRIGHT:
            break
        step = float(np.clip(step, -_STEP, _STEP))
        further = _seen(neighbourhood, last.angle + step, look)
        if further is None or further.face.score < seen.face.score - _WORSE:
            break
        change = further.tilt - last.tilt
        step = -further.tilt * step / change if change else 0.0
        last = further
    return min(seen, last, key=lambda view: abs(view.tilt))


@dataclass(frozen=True)
class _Seen:
    """The face in a view of the neighbourhood.

    Attributes:
        angle: how far the view is turned, counter-clockwise in degrees.
        face: the face, in pixels of the view.
        tilt: the angle of the face in the view, clockwise in degrees.
    """

    angle: float
    face: Face
    tilt: float


def _seen(neighbourhood: np.ndarray, angle: float, look: Look) -> _Seen | None:
    view = cv2.warpAffine(neighbourhood, _turned(angle), (_VIEW, _VIEW))
    middle = [face for face in look(view) if _off_centre(face) <= _MOST_OFF_CENTRE]
    if not middle:
        return None
    best = max(middle, key=lambda face: face.score)
    return _Seen(angle, best, fit(best).angle)


def _off_centre(face: Face) -> float:
    """Return the distance of a face's box from the middle of the view, in sizes of a face."""
    return float(np.hypot(*((face.box[:2] + face.box[2:]) / 2 - _VIEW / 2))) / _FACE_IN_VIEW


def _turned(angle: float) -> np.ndarray:
    """Return the (2, 3) map from the neighbourhood to its turned middle."""
    matrix = cv2.getRotationMatrix2D((_WIDE / 2, _WIDE / 2), angle, 1)
    matrix[:, 2] += (_VIEW - _WIDE) / 2
    return matrix


def _to_neighbourhood(face: Face) -> np.ndarray:
    """Return the (2, 3) map from the image to the face's neighbourhood."""
    factor = min(_FACE_IN_VIEW / max(face.size, 1e-6), _MOST_ENLARGED)
    x, y = (face.box[:2] + face.box[2:]) / 2
    return np.array([[factor, 0, _WIDE / 2 - factor * x], [0, factor, _WIDE / 2 - factor * y]])


def _quality(seen: _Seen) -> float:
    found = fit(seen.face)
    misfit = min(found.residual, 100) / 200 + abs(found.scale - 1.6) / 5
    return seen.face.score - abs(found.angle) / 180 - misfit


def turn(face: Face, matrix: np.ndarray) -> Face:
    """Return a face moved by a similarity; its box is scaled but not rotated."""
    size = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    middle = transform((face.box[:2] + face.box[2:])[None] / 2, matrix)[0]
    half = size * (face.box[2:] - face.box[:2]) / 2
    box = np.concatenate([middle - half, middle + half])
    return replace(face, box=box, landmarks=transform(face.landmarks, matrix))
