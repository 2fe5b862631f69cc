"""Alignment and pasting back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.faces.align import FACE_SIZE, TEMPLATE, invert, similarity, warp_face
from quantface_arch.faces.paste import paste_face


def _apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def _photograph(height=300, width=400, dtype=np.uint8):
    peak = np.iinfo(dtype).max
    coarse = np.random.randint(0, peak, (height // 20, width // 20, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height)), 0, peak).astype(dtype)


def _placed(scale, angle, x, y):
    """Landmarks of a face of this size and tilt, its template centre at (x, y)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * (TEMPLATE - FACE_SIZE / 2) @ turn.T + (x, y)


faces = st.tuples(
    st.floats(0.03, 3), st.floats(-3, 3), st.floats(-100, 5000), st.floats(-100, 5000)
)


@given(faces)
@settings(max_examples=50, deadline=None)
def test_alignment_takes_landmarks_to_the_template_and_back(face):
    landmarks = _placed(*face)
    for points in (landmarks, landmarks[:2]):
        matrix = similarity(points)
        assert np.allclose(_apply(matrix, landmarks), TEMPLATE, atol=0.05)
        there_and_back = _apply(invert(matrix), _apply(matrix, landmarks))
        assert np.allclose(there_and_back, landmarks, atol=1e-6 * max(1, np.abs(landmarks).max()))


def test_one_misplaced_landmark_does_not_tilt_the_face():
    landmarks = _placed(0.4, 0.3, 200, 150)
    landmarks[2] += 40
    aligned = _apply(similarity(landmarks), landmarks)
    assert np.abs(np.delete(aligned - TEMPLATE, 2, axis=0)).max() < 1


def test_shrinking_a_face_does_not_alias():
    stripes = np.zeros((2400, 2400, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = warp_face(stripes, similarity(_placed(4.1, 0.0, 1200, 1200)))
    assert np.abs(crop.astype(int) - 127).max() <= 24


def test_a_face_at_the_border_is_filled_with_its_mirror_image():
    crop = warp_face(np.full((100, 100, 3), 200, np.uint8), similarity(_placed(0.3, 0.2, 5, 5)))
    assert (crop == 200).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("face", [(0.2, 0.3, 200, 150), (0.5, -0.5, 30, 280), (1.7, 0.1, 200, 150)])
def test_pasting_leaves_pixels_outside_the_face_as_they_are(dtype, face):
    photograph = _photograph(dtype=dtype)
    canvas = photograph.copy()
    matrix = similarity(_placed(*face))
    white = np.full((FACE_SIZE, FACE_SIZE, 3), np.iinfo(dtype).max, dtype)
    paste_face(canvas, white, matrix)
    y, x = np.mgrid[:300, :400]
    place = _apply(matrix, np.stack([x.ravel(), y.ravel()], 1)).reshape(300, 400, 2)
    outside = ((place < 0) | (place > FACE_SIZE - 1)).any(axis=2)
    assert np.array_equal(canvas[outside], photograph[outside])
    well_inside = (np.abs(place - FACE_SIZE / 2) < 30).all(axis=2)
    assert (canvas[well_inside] == np.iinfo(dtype).max).all()


def test_pasting_the_unchanged_crop_changes_hardly_anything():
    photograph = _photograph()
    for scale in (1.0, 0.2):
        matrix = similarity(_placed(scale, 0.2, 200, 150))
        canvas = photograph.copy()
        paste_face(canvas, warp_face(photograph, matrix), matrix)
        assert np.abs(canvas.astype(int) - photograph).max() <= 3


def test_strength_zero_changes_nothing_and_half_is_halfway():
    photograph = _photograph()
    matrix = similarity(_placed(0.4, 0.2, 200, 150))
    black = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    results = []
    for strength in (0, 0.5, 1):
        results.append(photograph.copy())
        paste_face(results[-1], black, matrix, strength=strength)
    assert np.array_equal(results[0], photograph)
    halfway = (results[0].astype(float) + results[2]) / 2
    assert np.abs(results[1] - halfway).max() <= 1


def test_pasting_into_an_enlarged_photograph_hits_the_same_place():
    photograph = _photograph()
    matrix = similarity(_placed(0.3, 0.4, 180, 140))
    crop = warp_face(photograph, matrix)
    canvas = cv2.resize(photograph, (1200, 900), interpolation=cv2.INTER_LANCZOS4)
    enlarged = canvas.copy()
    paste_face(canvas, crop, matrix, scale=(3, 3))
    assert not np.array_equal(canvas, enlarged)
    assert np.abs(canvas.astype(int) - enlarged).max() <= 6
