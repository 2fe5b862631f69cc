"""Measure the skin tone of an aligned face at its cheeks."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["SKIN_TONES", "skin_tone", "typology_angle"]

# Each class ends at this individual typology angle in degrees (Chardon et al., 1991), and joins two
# of the six published classes: brown and dark up to 10, tan and intermediate up to 41, light and
# very light above.
SKIN_TONES = {"dark": 10.0, "medium": 41.0, "light": 90.0}
# The squares to measure lie around the centres of both cheeks (x, y). Centres and half the side of
# the squares are shares of the width of a face in FFHQ's alignment.
CHEEKS, HALF = ((0.344, 0.633), (0.656, 0.633)), 0.047


def typology_angle(face: np.ndarray) -> float:
    """Return the individual typology angle of an aligned face, in degrees from -90 to 90.

    The angle is atan((L* - 50) / b*) for the mean of both cheeks' median colours.

    Args:
        face: float32 (H, W, 3), BGR in [0, 1], in FFHQ's alignment.
    """
    lab = cv2.cvtColor(face, cv2.COLOR_BGR2LAB)
    height, width = face.shape[:2]
    medians = []
    for x, y in CHEEKS:
        rows = slice(int((y - HALF) * height), int((y + HALF) * height) + 1)
        columns = slice(int((x - HALF) * width), int((x + HALF) * width) + 1)
        medians.append(np.median(lab[rows, columns].reshape(-1, 3), axis=0))
    lightness, _, yellow = np.mean(medians, axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, max(yellow, 1e-3))))


def skin_tone(face: np.ndarray) -> str:
    """Return the class in ``SKIN_TONES`` of an aligned face (see ``typology_angle``)."""
    angle = typology_angle(face)
    return next(name for name, most in SKIN_TONES.items() if angle <= most)
