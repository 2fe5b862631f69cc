"""Align faces to the 512×512 frame that the restorers are trained on."""

from __future__ import annotations

import math

import cv2
import numpy as np

__all__ = ["FACE_SIZE", "TEMPLATE", "invert", "similarity", "transform", "warp", "warp_face"]

FACE_SIZE = 512
# Left eye, right eye (as seen in the image), nose tip and mouth corners of the mean FFHQ face. Face
# restorers share this frame.
TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
# Interpolation reads a few pixels around each position, so regions are this much wider.
_MARGIN = 4


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift that map landmarks to the 512×512 template.

    Args:
        landmarks: (5, 2) eyes, nose and mouth corners, or (2, 2) the eyes alone; in pixels.

    Returns:
        (2, 3) float64 matrix from image to aligned coordinates. Five points are fitted by the least
        median of squares, so that one misplaced point does not tilt the face. Two points are fitted
        exactly.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if len(points) == 2:
        return _from_eyes(points)
    matrix, _ = cv2.estimateAffinePartial2D(points, TEMPLATE, method=cv2.LMEDS)
    return _from_eyes(points[:2]) if matrix is None else matrix


def _from_eyes(eyes: np.ndarray) -> np.ndarray:
    """Return the similarity that maps two eyes to the template's."""
    # With points as complex numbers, a similarity is z -> a z + b.
    source = eyes[:, 0] + 1j * eyes[:, 1]
    target = TEMPLATE[:2, 0] + 1j * TEMPLATE[:2, 1]
    a = (target[1] - target[0]) / (source[1] - source[0])
    b = target[0] - a * source[0]
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a (2, 3) affine map."""
    return cv2.invertAffineTransform(np.asarray(matrix, dtype=np.float64))


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) affine map to (N, 2) points."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def resize_matrix(scale_x: float, scale_y: float) -> np.ndarray:
    """Return the (3, 3) map of pixel centres when an image is resized by these factors."""
    return np.array(
        [[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]], np.float64
    )


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Warp an image with cubic interpolation, without aliasing when it shrinks.

    Args:
        image: (H, W[, C]) of any dtype.
        matrix: (2, 3) similarity from ``image`` to the result.
        size: (width, height) of the result.
        border: OpenCV's border mode; a constant border is filled with 0.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    height, width = image.shape[:2]
    small = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1 and small != (width, height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.linalg.inv(resize_matrix(small[0] / width, small[1] / height))
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC, borderMode=border)


def covered_region(
    matrix: np.ndarray, size: tuple[int, int], bounds: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return the bounding box of a mapped rectangle, clipped to an image.

    Args:
        matrix: (2, 3) affine map.
        size: (width, height) of the rectangle, whose corner is the origin.
        bounds: (width, height) of the image.

    Returns:
        (left, top, right, bottom) in whole pixels with a margin, or None if nothing is left.
    """
    width, height = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    points = corners @ np.asarray(matrix).T
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + _MARGIN, bounds)
    if (low >= high).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def shift(x: float, y: float) -> np.ndarray:
    """Return the (3, 3) map that moves points by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def warp_face(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Cut one aligned face out of an image.

    Only the region around the face is read. Beyond its borders the image is mirrored, as in the
    alignment of FFHQ's training faces.

    Args:
        rgb: (H, W, 3) uint8 or uint16.
        matrix: result of :func:`similarity`.

    Returns:
        (512, 512, 3) in the same dtype.
    """
    bounds = rgb.shape[1], rgb.shape[0]
    region = covered_region(invert(matrix), (FACE_SIZE, FACE_SIZE), bounds)
    if region is None:
        region = (0, 0, *bounds)
    left, top, right, bottom = region
    local = matrix @ shift(left, top)
    frame = (FACE_SIZE, FACE_SIZE)
    return warp(rgb[top:bottom, left:right], local, frame, cv2.BORDER_REFLECT_101)
