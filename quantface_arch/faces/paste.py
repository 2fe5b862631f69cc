"""Paste restored faces back into their image."""

from __future__ import annotations

import math

import cv2
import numpy as np

from quantface_arch.faces.align import (
    covered_region,
    invert,
    resize_matrix,
    shift,
    warp,
)
from quantface_arch.faces.mask import HeadMask, head_mask

__all__ = ["noise_level", "paste_face"]

# Standard deviation, in pixels of the input, of the blur that separates grain from shapes.
_GRAIN_BLUR = 3.0
# What exceeds this many standard deviations of the noise is an edge.
_NOISE_RANGE = 6.0
# Median absolute deviation to standard deviation of a normal distribution.
_MAD_TO_SIGMA = 1.4826
# More pixels than this do not make the estimate of noise better.
_NOISE_SAMPLES = 20_000


def paste_face(
    canvas: np.ndarray,
    face: np.ndarray,
    matrix: np.ndarray,
    scale: tuple[float, float] = (1.0, 1.0),
    strength: float = 1.0,
    mask: HeadMask | None = None,
) -> None:
    """Blend one restored face into ``canvas``, in place; pixels outside the mask are not touched.

    The blend has two bands (after Burt and Adelson, 1983). Grain is what a blur takes away, as far
    as the noise around the face reaches; it changes from the canvas's to the face's over a wider
    zone than everything else does. Without it, the noise of the input would end at an outline.

    Args:
        canvas: (H, W, 3) uint8 or uint16, the image at ``scale`` times its size.
        face: (512, 512, 3) of the same dtype.
        matrix: (2, 3) :func:`~quantface_arch.faces.align.similarity` of the face at original size.
        scale: how many times wider and higher the canvas is than the image was.
        strength: weight of the restored face, 0 (nothing happens) to 1.
        mask: shape of the head; None is a head that looks at the camera.
    """
    mask = mask or head_mask()
    inverse = resize_matrix(*scale) @ np.vstack([invert(matrix), [0, 0, 1]])
    first_x, first_y, width, height = cv2.boundingRect((mask.coarse > 0).astype(np.uint8))
    bounds = canvas.shape[1], canvas.shape[0]
    region = covered_region((inverse @ shift(first_x, first_y))[:2], (width, height), bounds)
    if region is None:
        return
    left, top, right, bottom = region
    local = (shift(-left, -top) @ inverse)[:2]
    size = right - left, bottom - top
    coarse, fine = (
        np.clip(warp(weight, local, size, cv2.BORDER_CONSTANT), 0, 1)[..., None]
        for weight in (mask.coarse, mask.fine)
    )
    warped = warp(face.astype(np.float32), local, size, cv2.BORDER_REPLICATE)
    below = canvas[top:bottom, left:right]
    blurred = _GRAIN_BLUR * math.sqrt(scale[0] * scale[1])
    grain, restored_grain = _grain(below.astype(np.float32), warped, coarse[..., 0] == 0, blurred)
    change = coarse * (warped - below) + (coarse - fine) * (grain - restored_grain)
    peak = np.iinfo(canvas.dtype).max
    whole = np.clip(below + change, 0, peak)
    inside = coarse[..., 0] > 0
    below[inside] = np.rint(below + strength * (whole - below))[inside].astype(canvas.dtype)


def _grain(
    below: np.ndarray, warped: np.ndarray, around: np.ndarray, blurred: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the grain of the canvas and of the face, both (H, W, 3) float32."""
    high = below - cv2.GaussianBlur(below, (0, 0), blurred)
    limit = _NOISE_RANGE * noise_level(high, around)
    other = warped - cv2.GaussianBlur(warped, (0, 0), blurred)
    return np.clip(high, -limit, limit), np.clip(other, -limit, limit)


def noise_level(high: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Return the standard deviation of an image's noise, robust against edges.

    Args:
        high: (H, W, C) high-pass of the image.
        around: (H, W) bool, where to look; nowhere means everywhere.

    Returns:
        (C,) in the units of ``high``, from the median of absolute values.
    """
    values = high[around] if around.any() else high.reshape(-1, high.shape[-1])
    values = values[:: max(1, len(values) // _NOISE_SAMPLES)]
    return _MAD_TO_SIGMA * np.median(np.abs(values), axis=0)
