"""Detectors: what they find, at every size and from several threads, and their weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.faces import weights
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.weights import check_weights_dir
from quantface_arch.faces.yunet import MODEL, YuNetDetector
from quantface_arch.utils.download import Published
from quantface_arch.utils.images import load_rgb

PHOTOGRAPHS = {"codeformer_00.jpg": 4, "codeformer_02.png": 4, "codeformer_06.png": 2}
# Sides of a portrait whose face is about a third of it wide: faces of 80 to 1,400 pixels.
SIDES = (256, 1024, 4096)


def _resized(rgb, width, height):
    mode = cv2.INTER_AREA if width < rgb.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(rgb, (width, height), interpolation=mode)


def _eye_distance(face):
    return np.linalg.norm(face.landmarks[1] - face.landmarks[0])


@pytest.mark.slow
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_the_faces_of_groups_are_found_and_nothing_else(data_root, detector, photograph):
    found = detector.detect(load_rgb(data_root / "inputs/whole" / photograph))
    assert len(found) == PHOTOGRAPHS[photograph]
    centres = [(face.box[0] + face.box[2]) / 2 for face in found]
    assert centres == sorted(centres)
    for face in found:
        assert face.landmarks.shape == (5, 2)
        assert (face.landmarks >= face.box[:2]).all() and (face.landmarks <= face.box[2:]).all()
        assert face.landmarks[0, 0] < face.landmarks[1, 0]
        assert 0 < face.score <= 1


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_portrait_has_one_face_at_every_size(data_root, detector, side):
    paths = sorted((data_root / "portraits").glob("*.jpg"))[:: 16 if side < 2000 else 80]
    portraits = [load_rgb(path) for path in paths]
    counts = [len(detector.detect(_resized(rgb, side, side))) for rgb in portraits]
    assert counts == [1] * len(paths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    # Wheels of cars behind the person; a half profile.
    [("f29", 2048), ("f30", 2048), ("m09", 2048), ("f66", 256), ("f66", 512)],
)
def test_wheels_are_no_faces_and_half_profiles_are(data_root, name, side):
    rgb = load_rgb(data_root / f"portraits/{name}.jpg")
    assert len(YuNetDetector().detect(_resized(rgb, side, side))) == 1


@pytest.mark.slow
def test_faces_of_20_pixels_are_found(data_root, detector):
    found = 0
    paths = sorted((data_root / "portraits").glob("*.jpg"))[::8]
    for path in paths:
        rgb = _resized(load_rgb(path), 256, 256)
        face = max(detector.detect(rgb), key=lambda face: face.score)
        side = round(256 * 20 / (face.box[2] - face.box[0]))
        found += len(detector.detect(_resized(rgb, side, side))) == 1
    assert found >= 0.9 * len(paths)


@pytest.mark.slow
@pytest.mark.parametrize("high", [60, 640, 2000, 5000])
def test_a_face_that_fills_the_image_is_one_face(astronaut, detector, high):
    face = detector.detect(astronaut)[0]
    left, top, right, bottom = face.box.astype(int)
    crop = astronaut[max(top - 20, 0) : bottom + 20, left - 20 : right + 20]
    scale = high / crop.shape[0]
    (found,) = detector.detect(_resized(crop, round(crop.shape[1] * scale), high))
    assert _eye_distance(found) == pytest.approx(_eye_distance(face) * scale, rel=0.15)
    assert high > found.box[3] - found.box[1] > 0.6 * high


@pytest.mark.slow
def test_small_faces_of_large_photographs_and_16_bits(data_root, detector):
    rgb = load_rgb(data_root / "inputs/whole/codeformer_00.jpg")
    large = np.full((1400, 2000, 3), 128, np.uint8)
    large[1000 : 1000 + rgb.shape[0], 500 : 500 + rgb.shape[1]] = rgb
    small = detector.detect(rgb)
    found = detector.detect(large.astype(np.uint16) * 257)
    assert len(found) == len(small)
    for one, other in zip(found, small, strict=True):
        assert np.allclose(one.landmarks - (500, 1000), other.landmarks, atol=4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3000, 2), (17, 33), (64, 64)])
def test_a_picture_of_any_shape_without_a_face_has_none(shape):
    assert build_detector().detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_the_shipped_picture_needs_no_weights(astronaut):
    assert len(build_detector("yunet").detect(astronaut)) == 1


@pytest.mark.slow
def test_eight_threads_share_a_detector(astronaut, detector):
    """The networks keep the size of their input between calls, so the sizes differ here."""
    images = [_resized(astronaut, width, 3 * width // 4) for width in range(120, 840, 90)]
    wanted = [detector.detect(image) for image in images]
    assert all(len(faces) == 1 for faces in wanted)
    rounds = 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(detector.detect, images * rounds))
    for faces, expected in zip(found, wanted * rounds, strict=True):
        assert len(faces) == 1
        assert np.allclose(faces[0].box, expected[0].box, atol=0.01)
        assert np.allclose(faces[0].landmarks, expected[0].landmarks, atol=0.01)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_facexlib_cache", lambda: tmp_path / "cache")
    # A port that nobody listens on: a download that fails at once.
    monkeypatch.setattr(weights, "_RELEASE", "http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["auto", "yunet", "haar"])
def test_the_built_in_detector_needs_no_weights_and_no_network(no_weights, name):
    told = []
    assert build_detector(name, notify=told.append).name == "yunet"
    assert told == (["the detector haar was removed; yunet replaces it"] if name == "haar" else [])


@pytest.mark.parametrize("offline", [True, False])
def test_a_detector_asked_for_by_name_does_not_fall_back(no_weights, offline):
    with pytest.raises(QuantFaceError, match=r"Resnet50_Final\.pth .* --weights-dir"):
        build_detector("retinaface_resnet50", offline=offline)


def test_a_download_lands_whole(no_weights, monkeypatch, tmp_path):
    source = tmp_path / "release"
    source.mkdir()
    name = weights.FILES["retinaface_mobile0.25"].name
    (source / name).write_bytes(b"weights")
    file = Published((source / name).as_uri())
    monkeypatch.setitem(weights.FILES, "retinaface_mobile0.25", file)
    found = weights.find_weights("retinaface_mobile0.25", tmp_path / "to", False, lambda _: None)
    assert found == tmp_path / "to" / name
    assert found.read_bytes() == b"weights"


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / weights.FILES["retinaface_mobile0.25"].name
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(QuantFaceError, match=path.name) as caught:
        build_detector("retinaface_mobile0.25", weights_dir=tmp_path, offline=True)
    assert "\n" not in str(caught.value)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(MODEL.read_bytes()[:1000])
    for path, said in ((broken, "does not hold"), (tmp_path / "none.onnx", "is missing")):
        with pytest.raises(QuantFaceError, match=f"{path.name}.* {said}") as caught:
            YuNetDetector(path)
        assert "\n" not in str(caught.value)


def test_a_folder_of_weights_that_a_download_would_make_may_be_named(tmp_path):
    check_weights_dir(None)
    check_weights_dir(tmp_path / "new")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is not a folder"):
        check_weights_dir(tmp_path / "file")
