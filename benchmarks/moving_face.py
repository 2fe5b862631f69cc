"""Generate a video of a photograph on a known path, and measure how its face is tracked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from quantface_arch.faces.align import TEMPLATE, invert, similarity

__all__ = ["deviations", "moving"]

RATE = 30


def moving(
    photo: np.ndarray, count: int, size: tuple[int, int], noise: float = 6.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames of a photograph that sways, nods, turns and comes nearer, at 30 fps.

    Args:
        photo: (H, W, 3) uint8.
        size: (width, height) of the frames; the motion is proportional to the width.
        noise: standard deviation in levels, drawn again for every frame.

    Yields:
        the frame, uint8, and the (2, 3) similarity from the photograph to it.
    """
    rng = np.random.default_rng(0)
    height, width = photo.shape[:2]
    for number in range(count):
        turns = 2 * np.pi * number / RATE
        scale = size[0] / width * (1 + 0.05 * np.sin(0.4 * turns))
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 4 * np.sin(0.7 * turns), scale)
        sway, nod = 0.05 * np.sin(0.5 * turns), 0.02 * np.sin(1.0 * turns)
        matrix[:, 2] += np.array(size) / 2 - [width / 2, height / 2]
        matrix[:, 2] += np.array([sway, nod]) * size[0]
        clean = cv2.warpAffine(
            photo, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
        )
        noisy = clean + rng.normal(0, noise, clean.shape)
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8), matrix


def deviations(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> tuple[float, float]:
    """Measure how the face moves inside its aligned crop, where it should stand still.

    Args:
        found: for every frame, the (2, 3) transform from the frame to the aligned crop.
        true: for every frame, the (2, 3) transform from the photograph to the frame.

    Returns:
        jitter and drift in pixels of the 512x512 crop: root mean squares over its five template
        points of the change between frames, and of the distance from the mean position.
    """
    places = []
    for aligned, matrix in zip(found, true, strict=True):
        in_frame = _moved(TEMPLATE, invert(aligned))
        places.append(_moved(in_frame, invert(matrix)))
    mean = np.mean(places, axis=0)
    scale = np.sqrt(abs(np.linalg.det(similarity(mean)[:, :2])))
    away = (np.array(places) - mean) * scale
    return _rms(np.diff(away, axis=0)), _rms(away)


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _rms(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.square(vectors).sum(axis=-1).mean()))
