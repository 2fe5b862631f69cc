"""Classes of skin tone by the individual typology angle."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from quantface_arch.faces.skin_tone import SKIN_TONES, skin_tone, typology_angle


def face_of(lightness, yellow=15.0, side=256):
    lab = np.full((side, side, 3), (lightness, 10.0, yellow), np.float32)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)


@pytest.mark.parametrize(("lightness", "wanted"), [(35, "dark"), (58, "medium"), (75, "light")])
def test_uniform_faces_have_the_class_of_their_angle(lightness, wanted):
    face = face_of(lightness)
    assert typology_angle(face) == pytest.approx(
        np.degrees(np.arctan((lightness - 50) / 15)), abs=1
    )
    assert skin_tone(face) == wanted


def test_the_angle_rises_with_lightness_at_any_size():
    for side in (128, 512):
        angles = [typology_angle(face_of(lightness, side=side)) for lightness in range(20, 90, 10)]
        assert all(a < b for a, b in itertools.pairwise(angles))


def test_only_the_cheeks_count():
    face = face_of(75)
    changed = face.copy()
    changed[:100] = changed[220:] = 0
    assert typology_angle(changed) == typology_angle(face)
    assert list(SKIN_TONES) == ["dark", "medium", "light"]
