"""Make head-shaped masks in the aligned 512×512 frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from quantface_arch.faces.align import FACE_SIZE

__all__ = ["HeadMask", "head_mask", "head_turn"]

# The mean FFHQ head is an egg: widest at the temples, in this row, and narrow at the chin.
_MIDDLE = (FACE_SIZE - 1) / 2
_WIDEST_ROW = 262.0
_CROWN, _CHIN = 36.0, 486.0
_HALF_WIDTH = 186.0
_NARROWING = 36.0
_EXPONENT = 2.3
# The head's middle moves by this many pixels for each pixel of the nose. Turns are limited, because
# a larger one would bring the nose of a profile near the outline.
_SHIFT = 1.5
_MAX_TURN = 40.0
# The interval in which each weight rises from 0 to 1: the outline is at 0, the middle at 1.
_FADE = 0.0, 0.22
_GRAIN_FADE = 0.15, 0.72
# Pixels this close to the frame's edge are interpolated with its border, so their weight is 0.
_EDGE = 16
_EDGE_FADE = 48
# The masks are smooth, so they are computed at a quarter of the frame's size and enlarged.
_STEP = 4


@dataclass(frozen=True)
class HeadMask:
    """Weights of a restored face: 0 outside the head, and rising smoothly to 1 inside.

    Attributes:
        coarse: (512, 512) float32 in [0, 1], weight of tones and shapes.
        fine: (512, 512) float32 of at most ``coarse``, weight of grain; it rises more slowly.
    """

    coarse: np.ndarray
    fine: np.ndarray


def head_turn(landmarks: np.ndarray) -> float:
    """Return how far a head is turned: the distance of the nose from the middle of the face.

    Args:
        landmarks: (5, 2) eyes, nose and mouth corners in the aligned frame. If only the eyes are
            given, (2, 2), the turn is unknown and 0 is returned.

    Returns:
        pixels, limited to ±40; negative if the nose points to the left of the image.
    """
    if len(landmarks) < 5:
        return 0.0
    middle = (landmarks[:2].mean(axis=0) + landmarks[3:].mean(axis=0)) / 2
    return float(np.clip(landmarks[2, 0] - middle[0], -_MAX_TURN, _MAX_TURN))


def head_mask(turn: float = 0.0) -> HeadMask:
    """Return the weights with which a head is pasted.

    The head is an egg around face, hair and chin. When the head turns, the egg moves away from the
    nose, towards the back of the head. All weights fade to 0 before the edge of the frame.

    Args:
        turn: result of :func:`head_turn`.
    """
    place = np.arange(0, FACE_SIZE, _STEP, dtype=np.float32) + (_STEP - 1) / 2
    x, y = place[None, :] - (_MIDDLE - _SHIFT * turn), place[:, None] - _WIDEST_ROW
    y = y / np.where(y < 0, _WIDEST_ROW - _CROWN, _CHIN - _WIDEST_ROW)
    x = x / (_HALF_WIDTH - _NARROWING * np.clip(y, 0, 1))
    depth = 1 - (np.abs(x) ** _EXPONENT + np.abs(y) ** _EXPONENT) ** (1 / _EXPONENT)
    edge = _rise((np.minimum(place, FACE_SIZE - 1 - place) - _EDGE) / _EDGE_FADE)
    frame = np.outer(edge, edge)
    coarse, fine = (
        _enlarged(frame * _rise((depth - start) / (end - start)))
        for start, end in (_FADE, _GRAIN_FADE)
    )
    return HeadMask(coarse, fine)


def _rise(ramp: np.ndarray) -> np.ndarray:
    """Return the smoothstep of a ramp, which is clipped to [0, 1]."""
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _enlarged(mask: np.ndarray) -> np.ndarray:
    """Enlarge a mask to the aligned frame."""
    size = (FACE_SIZE, FACE_SIZE)
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
