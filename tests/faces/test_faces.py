"""Detection, alignment and pasting."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces import weights
from quantface_arch.faces.align import FACE_SIZE, TEMPLATE, invert, similarity, warp_face
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.paste import paste_face
from quantface_arch.utils.images import load_rgb

PHOTOGRAPHS = {"codeformer_00.jpg": 3, "codeformer_02.png": 4, "codeformer_06.png": 2}


def _apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def _photograph(height=300, width=400, dtype=np.uint8):
    peak = np.iinfo(dtype).max
    coarse = np.random.randint(0, peak, (height // 20, width // 20, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height)), 0, peak).astype(dtype)


def _placed(scale, angle, x, y):
    """Return the landmarks of a face with this scale and tilt, centred at (x, y)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * (TEMPLATE - FACE_SIZE / 2) @ turn.T + (x, y)


faces = st.tuples(
    st.floats(0.03, 3), st.floats(-3, 3), st.floats(-100, 5000), st.floats(-100, 5000)
)


@given(faces)
@settings(max_examples=50, deadline=None)
def test_alignment_maps_landmarks_to_the_template_and_back(face):
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


def test_a_face_at_the_border_is_filled_by_mirroring():
    crop = warp_face(np.full((100, 100, 3), 200, np.uint8), similarity(_placed(0.3, 0.2, 5, 5)))
    assert (crop == 200).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("face", [(0.2, 0.3, 200, 150), (0.5, -0.5, 30, 280), (1.7, 0.1, 200, 150)])
def test_pasting_does_not_change_pixels_outside_the_face(dtype, face):
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


def test_pasting_into_an_enlarged_photograph_uses_the_same_place():
    photograph = _photograph()
    matrix = similarity(_placed(0.3, 0.4, 180, 140))
    crop = warp_face(photograph, matrix)
    canvas = cv2.resize(photograph, (1200, 900), interpolation=cv2.INTER_LANCZOS4)
    enlarged = canvas.copy()
    paste_face(canvas, crop, matrix, scale=(3, 3))
    assert not np.array_equal(canvas, enlarged)
    assert np.abs(canvas.astype(int) - enlarged).max() <= 6


@pytest.mark.parametrize("name", ["auto", "haar"])
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_faces_of_real_photographs_are_found(data_root, name, photograph):
    detector = build_detector(name, weights_dir=data_root / "weights/facexlib", offline=True)
    rgb = load_rgb(data_root / "inputs/whole" / photograph)
    found = detector.detect(rgb)
    assert len(found) >= PHOTOGRAPHS[photograph]
    centres = [(face.box[0] + face.box[2]) / 2 for face in found]
    assert centres == sorted(centres)
    for face in found:
        assert (face.landmarks >= face.box[:2]).all() and (face.landmarks <= face.box[2:]).all()
        assert face.landmarks[0, 0] < face.landmarks[1, 0]
        assert 0 < face.score <= 1


def test_small_faces_are_found_in_large_photographs_with_16_bits(data_root):
    detector = build_detector(weights_dir=data_root / "weights/facexlib", offline=True)
    rgb = load_rgb(data_root / "inputs/whole/codeformer_00.jpg")
    large = np.full((2400, 3600, 3), 128, np.uint8)
    large[1000 : 1000 + rgb.shape[0], 2000 : 2000 + rgb.shape[1]] = rgb
    small = detector.detect(rgb)
    found = detector.detect(large.astype(np.uint16) * 257)
    assert len(found) == len(small)
    for one, other in zip(found, small, strict=True):
        assert np.allclose(one.landmarks - (2000, 1000), other.landmarks, atol=4)


def test_the_shipped_image_needs_no_weights(repo):
    assert len(build_detector("haar").detect(load_rgb(repo / "inputs/astronaut.jpg"))) == 1


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_facexlib_cache", lambda: tmp_path / "cache")
    # Nothing listens on this port, so downloads fail at once.
    monkeypatch.setattr(weights, "_RELEASE", "http://127.0.0.1:9")


@pytest.mark.parametrize("offline", [True, False])
def test_without_weights_auto_falls_back_and_says_so(no_weights, offline):
    told = []
    assert build_detector("auto", offline=offline, notify=told.append).name == "haar"
    assert "Haar" in told[-1] and "--weights-dir" in told[-1]
    assert offline or "1.7 MB" in told[0]


@pytest.mark.parametrize("offline", [True, False])
def test_a_detector_asked_for_by_name_does_not_fall_back(no_weights, offline):
    with pytest.raises(QuantFaceError, match=r"Resnet50_Final\.pth .* --weights-dir"):
        build_detector("retinaface_resnet50", offline=offline)


def test_a_download_lands_whole(no_weights, monkeypatch, tmp_path):
    source = tmp_path / "release"
    source.mkdir()
    name = weights.FILES["retinaface_mobile0.25"].name
    (source / name).write_bytes(b"weights")
    monkeypatch.setattr(weights, "_RELEASE", source.as_uri())
    found = weights.find_weights("retinaface_mobile0.25", tmp_path / "to", False, lambda _: None)
    assert found == tmp_path / "to" / name
    assert found.read_bytes() == b"weights"


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / weights.FILES["retinaface_mobile0.25"].name
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(QuantFaceError, match=path.name) as caught:
        build_detector("auto", weights_dir=tmp_path, offline=True)
    assert "\n" not in str(caught.value)
