"""Measure how degraded an aligned face is, and from that how strongly it should be restored.

The luma is split into four bands, each an octave wide. The measures compare the energies of the
sharpest edges and of the flattest areas in these bands: blur takes energy from the fine bands of
edges, and noise adds energy to flat areas. Nothing but NumPy and OpenCV is needed.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import cv2
import numpy as np

__all__ = ["FITTED", "MEASURES", "degradation_measures", "needed_strength"]

# scripts/fit_strength.py writes the coefficients of the measures, and its command, to this file.
FITTED = Path(__file__).with_name("strength.json")
MEASURES = ("fine_sharpness", "sharpness", "grain", "noise")

# Neighbouring bands are separated by blurs with these sigmas, in pixels of the 512×512 frame.
_SIGMAS = (0.7, 1.4, 2.8, 5.6)
# An energy is the mean over a window of this side. Windows overlap. The border of the frame is left
# out, because it often lies outside of the photograph.
_WINDOW, _STEP, _BORDER = 16, 8, 64
# These percentiles of the windows' energies stand for flat areas and for edges.
_FLAT, _EDGES = 5, 95
# The energy of pure noise varies between windows, by up to about this factor.
_SPREAD = 2
# This energy, in squared levels of 0…255, keeps logarithms finite; rounding alone causes more.
_LEAST = 0.02


def degradation_measures(face: np.ndarray) -> np.ndarray:
    """Return the measures of an aligned face in the order of ``MEASURES``, float64 (4,).

    Each is the logarithm of an amplitude or of a ratio of amplitudes. The two kinds of sharpness
    compare edges in a band with edges two octaves coarser, so the face's contrast does not matter;
    they fall with blur. ``grain`` compares flat areas with edges in the finest band, and ``noise``
    is the amplitude of flat areas in the next band, in levels of 0…255; they rise with noise.

    Args:
        face: (512, 512, 3) RGB in uint8 or uint16.
    """
    energies = _band_energies(face)
    flat, edges = np.percentile(energies, (_FLAT, _EDGES), axis=1)
    flat_level = np.log(flat + _LEAST) / 2
    edge_level = np.log(np.maximum(edges - _SPREAD * flat, 0) + _LEAST) / 2
    return np.array(
        [
            edge_level[0] - edge_level[2],
            edge_level[1] - edge_level[3],
            flat_level[0] - edge_level[0],
            flat_level[1],
        ]
    )


def needed_strength(face: np.ndarray) -> float:
    """Return how strongly a face should be restored: 0 if it is clean, 1 if it is degraded.

    The value is the probability of a logistic regression on ``degradation_measures``, in steps of
    0.01: clean faces are mostly left as they are, and degraded ones mostly replaced, to the last
    bit.

    Args:
        face: (512, 512, 3) RGB in uint8 or uint16.
    """
    weights, bias = _fitted()
    return round(float(1 / (1 + np.exp(-(degradation_measures(face) @ weights + bias)))), 2)


def _band_energies(face: np.ndarray) -> np.ndarray:
    """Return the mean energy of every band in every window, float32 (4, N)."""
    levels = face.astype(np.float32) * (255 / np.iinfo(face.dtype).max)
    luma = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    blurred = [luma, *(cv2.GaussianBlur(luma, (0, 0), sigma) for sigma in _SIGMAS)]
    inside = slice(_BORDER, -_BORDER, _STEP)
    bands = (fine - coarse for fine, coarse in itertools.pairwise(blurred))
    energies = (cv2.blur(band * band, (_WINDOW, _WINDOW))[inside, inside] for band in bands)
    return np.stack([energy.ravel() for energy in energies])


@functools.cache
def _fitted() -> tuple[np.ndarray, float]:
    """Return the weight of every measure, and the bias."""
    fitted = json.loads(FITTED.read_text(encoding="utf-8"))
    return np.array([fitted["weights"][name] for name in MEASURES]), fitted["bias"]
