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

# Sigma, in pixels of the input, of the Gaussian blur that separates grain from shapes.
_GRAIN_BLUR = 3.0
# A value beyond this many standard deviations of the noise is an edge, not grain.
_NOISE_RANGE = 6.0
# Ratio of the standard deviation to the median absolute deviation of a normal distribution.
_MAD_TO_SIGMA = 1.4826
# More pixels than this do not improve the estimate of the noise.
_NOISE_SAMPLES = 20_000


def paste_face(
    canvas: np.ndarray,
    face: np.ndarray,
    matrix: np.ndarray,
    scale: tuple[float, float] = (1.0, 1.0),
    strength: float = 1.0,
    mask: HeadMask | None = None,
) -> None:
    """Blend one restored face into ``canvas`` in place; pixels outside the mask do not change.

    The blend has two bands (after Burt and Adelson, 1983). Grain is the part that a blur removes,
    limited to the amplitude of the noise around the face. It fades from the canvas's grain to the
    face's over a wider zone than the rest. Otherwise the input's noise would end at an outline.

    Args:
        canvas: (H, W, 3) uint8 or uint16, the image at ``scale`` times its original size.
        face: (512, 512, 3) restored face in the same dtype.
        matrix: (2, 3) :func:`~quantface_arch.faces.align.similarity` of the face in the image at
            its original size.
        scale: (x, y) factors from the original image to the canvas.
        strength: weight of the restored face, from 0 (no change) to 1.
        mask: weights of the head; None is a head that faces the camera.
    """
    mask = mask or head_mask()
    inverse = resize_matrix(*scale) @ np.vstack([invert(matrix), [0, 0, 1]])
    region = _masked_region(mask, inverse, (canvas.shape[1], canvas.shape[0]))
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
    blended = _blend(below, warped, coarse, fine, _GRAIN_BLUR * math.sqrt(scale[0] * scale[1]))
    inside = coarse[..., 0] > 0
    below[inside] = np.rint(below + strength * (blended - below))[inside].astype(canvas.dtype)


def _masked_region(
    mask: HeadMask, inverse: np.ndarray, bounds: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of the mask on a canvas of (width, height), if any."""
    first_x, first_y, width, height = cv2.boundingRect((mask.coarse > 0).astype(np.uint8))
    return covered_region((inverse @ shift(first_x, first_y))[:2], (width, height), bounds)


def _blend(
    below: np.ndarray, warped: np.ndarray, coarse: np.ndarray, fine: np.ndarray, blurred: float
) -> np.ndarray:
    """Return the canvas with the face blended in, in both bands.

    Args:
        below: (H, W, 3) uint8 or uint16 canvas.
        warped: (H, W, 3) float32 face.
        coarse, fine: (H, W, 1) weights of the face.
        blurred: sigma of the blur that separates the grain.
    """
    grain, restored_grain = _grain(below.astype(np.float32), warped, coarse[..., 0] == 0, blurred)
    change = coarse * (warped - below) + (coarse - fine) * (grain - restored_grain)
    return np.clip(below + change, 0, np.iinfo(below.dtype).max)


def _grain(
    below: np.ndarray, warped: np.ndarray, around: np.ndarray, blurred: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the grain of the canvas and of the face, each (H, W, 3) float32."""
    high = below - cv2.GaussianBlur(below, (0, 0), blurred)
    limit = _NOISE_RANGE * noise_level(high, around)
    other = warped - cv2.GaussianBlur(warped, (0, 0), blurred)
    return np.clip(high, -limit, limit), np.clip(other, -limit, limit)


def noise_level(high: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Return the standard deviation of an image's noise, robust against edges.

    Args:
        high: (H, W, C) high-pass of the image.
        around: (H, W) bool, pixels to use; if none is set, all are used.

    Returns:
        (C,) in the units of ``high``, estimated from the median of absolute values.
    """
    values = high[around] if around.any() else high.reshape(-1, high.shape[-1])
    values = values[:: max(1, len(values) // _NOISE_SAMPLES)]
    return _MAD_TO_SIGMA * np.median(np.abs(values), axis=0)
