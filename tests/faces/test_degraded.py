"""The strength that a face needs: low for sharp faces, and never lower after more blur or noise."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from make_lq import degrade
from sharp_faces import mosaics

from quantface_arch.faces.degraded import FITTED, MEASURES, degradation_measures, needed_strength
from quantface_arch.utils.images import load_rgb

BLURS = (0, 0.5, 1.0, 1.4, 2.0, 4.0, 8.0)
NOISES = (0, 2, 5, 10, 24)
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def sharp(shipped_faces):
    return mosaics(shipped_faces)


def damaged(face, blur, noise):
    """Return a face after a blur and then noise of these sigmas."""
    levels = face.astype(np.float32)
    if blur:
        levels = cv2.GaussianBlur(levels, (0, 0), blur)
    grain = np.random.default_rng(0).standard_normal(face.shape, np.float32)
    return np.rint((levels + noise * grain).clip(0, 255)).astype(np.uint8)


def test_sharp_faces_need_nearly_nothing(sharp):
    assert len(sharp) == 4
    assert max(needed_strength(face) for face in sharp) <= 0.1


def test_degraded_faces_need_nearly_everything(sharp):
    for index in range(12):
        low, _ = degrade(sharp[index % 4].astype(np.float32) / 255, np.random.default_rng(index))
        assert needed_strength(np.rint(low * 255).astype(np.uint8)) >= 0.8, index
    for face in sharp:
        assert needed_strength(damaged(face, 5, 0)) >= 0.99
        assert needed_strength(damaged(face, 0, 24)) >= 0.9


def test_more_blur_or_noise_never_lowers_the_strength(sharp):
    for face in sharp[1:3]:
        grid = np.array([[needed_strength(damaged(face, b, n)) for n in NOISES] for b in BLURS])
        for axis in (0, 1):
            assert (np.maximum.accumulate(grid, axis) - grid).max() <= TOLERANCE
        assert grid[0, 0] < 0.1 and grid[-1, -1] > 0.97


def test_stronger_enlargement_never_lowers_the_strength(sharp):
    for face in sharp:
        found = []
        for factor in (1, 1.25, 1.5, 2, 3, 4, 6, 8):
            small = cv2.resize(
                face, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
            )
            found.append(
                needed_strength(cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC))
            )
        assert np.diff(found).min() >= -TOLERANCE and found[-1] >= 0.9


def test_each_measure_rises_or_falls_with_its_fault(sharp):
    for face in sharp:
        clean, blurred, noisy = (
            dict(zip(MEASURES, degradation_measures(image), strict=True))
            for image in (face, damaged(face, 2, 0), damaged(face, 0, 11))
        )
        assert blurred["fine_sharpness"] < clean["fine_sharpness"] - 1
        assert blurred["sharpness"] < clean["sharpness"] - 0.2
        assert noisy["grain"] > clean["grain"] + 0.5 and noisy["noise"] > clean["noise"] + 0.5


def test_the_depth_does_not_matter(sharp):
    for face in (sharp[0], damaged(sharp[0], 1.2, 3)):
        deep = face.astype(np.uint16) * 257
        assert degradation_measures(deep) == pytest.approx(degradation_measures(face), abs=1e-3)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_has_a_strength(level):
    assert 0 <= needed_strength(np.full((512, 512, 3), level, np.uint8)) <= 1


def test_the_coefficients_name_the_command_that_fitted_them(repo):
    fitted = json.loads(FITTED.read_text())
    program = fitted["command"].split()[1]
    assert (repo / program).is_file() and tuple(fitted["weights"]) == MEASURES


@pytest.mark.slow
def test_real_faces(data_root):
    clean = [load_rgb(path) for path in sorted((data_root / "faces/val512").glob("*.jpg"))[::25]]
    assert len(clean) == 8 and max(map(needed_strength, clean)) <= 0.05
