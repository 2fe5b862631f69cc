"""Putting restored faces back into their photograph."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from quantface_arch.faces.align import (
    FACE_SIZE,
    covered_region,
    invert,
    resize_matrix,
    shift,
    warp,
)

__all__ = ["paste_face", "soft_mask"]

_ERODED = 16
_FEATHER = 48


@functools.cache
def soft_mask() -> np.ndarray:
    """(512, 512) float32 weight of the restored face: 0 at the frame's edge, 1 inside.

    The outermost pixels stay 0, since the interpolation there has seen the border; then the weight
    rises smoothly, so that no seam shows.
    """
    distance = np.minimum(np.arange(FACE_SIZE), np.arange(FACE_SIZE)[::-1])
    ramp = np.clip((distance - _ERODED) / _FEATHER, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    mask = np.outer(ramp, ramp).astype(np.float32)
    mask.setflags(write=False)
    return mask


def paste_face(
    canvas: np.ndarray,
    face: np.ndarray,
    matrix: np.ndarray,
    scale: tuple[float, float] = (1.0, 1.0),
    strength: float = 1.0,
) -> None:
    """Blend one restored face into ``canvas``, in place; pixels outside the face are not touched.

    Args:
        canvas: (H, W, 3) uint8 or uint16, the photograph at ``scale`` times its size.
        face: (512, 512, 3) of the same dtype.
        matrix: the :func:`~quantface_arch.faces.align.similarity` of the face at original size.
        scale: how many times wider and higher the canvas is than the photograph was.
        strength: weight of the restored face, 0 (nothing happens) to 1.
    """
    inverse = resize_matrix(*scale) @ np.vstack([invert(matrix), [0, 0, 1]])
    bounds = canvas.shape[1], canvas.shape[0]
    region = covered_region(inverse[:2], (FACE_SIZE, FACE_SIZE), bounds)
    if region is None:
        return
    left, top, right, bottom = region
    local = (shift(-left, -top) @ inverse)[:2]
    size = right - left, bottom - top
    warped = warp(face.astype(np.float32), local, size, cv2.BORDER_REPLICATE)
    weight = strength * np.clip(warp(soft_mask(), local, size, cv2.BORDER_CONSTANT), 0, 1)
    below = canvas[top:bottom, left:right]
    blended = below + weight[..., None] * (warped - below)
    peak = np.iinfo(canvas.dtype).max
    inside = weight > 0
    below[inside] = np.rint(np.clip(blended[inside], 0, peak)).astype(canvas.dtype)
