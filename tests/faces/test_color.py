"""Keeping the colours and the brightness of a face."""

from __future__ import annotations

import numpy as np
import pytest

from quantface_arch.faces.color import keep_color


def smooth_face(dtype):
    ramp = np.linspace(0.3, 0.6, 512)
    face = np.stack([np.outer(ramp, ramp) + shift for shift in (0.1, 0.05, 0.0)], axis=2)
    return np.rint(face * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tint_is_taken_back_and_detail_stays(dtype):
    peak = np.iinfo(dtype).max
    original = smooth_face(dtype)
    detail = np.random.default_rng(0).normal(0, 0.02 * peak, (512, 512, 1))
    sharper = np.clip(original + detail, 0, peak)
    tint = np.array([0.10, -0.05, 0.02]) * peak
    tinted = np.rint(np.clip(sharper + tint, 0, peak)).astype(dtype)
    assert np.abs(keep_color(tinted, original) - sharper).max() < 0.01 * peak


def test_a_face_without_drift_is_left_as_it_is():
    original = smooth_face(np.uint8)
    assert np.array_equal(keep_color(original, original), original)
