"""Masks in the shape of a head, in the aligned 512×512 frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from quantface_arch.faces.align import FACE_SIZE

__all__ = ["HeadMask", "head_mask", "head_turn"]

# The mean FFHQ head: an egg around this row, wide at the temples, narrow at the chin.
_MIDDLE = (FACE_SIZE - 1) / 2
_WIDEST_ROW = 262.0
_CROWN, _CHIN = 36.0, 486.0
_HALF_WIDTH = 186.0
_NARROWING = 36.0
_EXPONENT = 2.3
# The head's middle moves this many pixels for one of the nose. Beyond the largest turn, a nose in
# profile would come near the outline.
_SHIFT = 1.5
_MAX_TURN = 40.0
# Where each weight rises from 0 to 1, as fractions of the way from the outline to the middle.
_FADE = 0.0, 0.22
_GRAIN_FADE = 0.15, 0.72
# Interpolation near the frame's edge has seen the border, so weights are 0 there.
_EDGE = 16
_EDGE_FADE = 48
# The masks are smooth, so they are computed at a quarter of the frame's size and enlarged.
_STEP = 4


@dataclass(frozen=True)
class HeadMask:
    """Weights of a restored face: 0 outside the head, rising smoothly to 1 inside.

    Attributes:
        coarse: (512, 512) float32 in [0, 1], the weight of tones and shapes.
        fine: (512, 512) float32, at most ``coarse``, the weight of grain; it rises more slowly.
    """

    coarse: np.ndarray
    fine: np.ndarray


def head_turn(landmarks: np.ndarray) -> float:
    """Return how far a head is turned: the nose's distance from the middle line, in pixels.

    Args:
        landmarks: (5, 2) eyes, nose and mouth corners in the aligned frame; (2, 2) eyes tell
            nothing, which gives 0.

    Returns:
        Negative where the nose points to the left of the image; limited to ±40.
    """
    if len(landmarks) < 5:
        return 0.0
    middle = (landmarks[:2].mean(axis=0) + landmarks[3:].mean(axis=0)) / 2
    return float(np.clip(landmarks[2, 0] - middle[0], -_MAX_TURN, _MAX_TURN))


def head_mask(turn: float = 0.0) -> HeadMask:
    """Return the weights with which a head is pasted.

    The head is an egg around face, hair and chin. The back of a turned head lies away from its
    nose, so the egg moves that way; what leaves the frame fades out before the frame's edge.

    Args:
        turn: see :func:`head_turn`.
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
    """Map a ramp to [0, 1] smoothly: 0 up to 0, 1 from 1."""
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _enlarged(mask: np.ndarray) -> np.ndarray:
    size = (FACE_SIZE, FACE_SIZE)
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
