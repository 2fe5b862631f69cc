"""How strongly faces are restored: as needed, as wanted, and within a limit on their change."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sharp_faces import mosaics
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import transform
from quantface_arch.faces.identity import FaceEmbedder
from quantface_arch.faces.mask import head_mask, head_turn
from quantface_arch.faces.paste import paste_face
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.strength import Strengths, blend, face_strengths
from quantface_arch.utils.images import RGBImage, load_rgb, write_image

ALIGNED = ("--aligned", "--runtime", "reference")


class Blur(nn.Module):
    """Averages 9×9 pixels, which changes a sharp face a lot."""

    def forward(self, lq, noise=None):
        return nn.functional.avg_pool2d(lq, 9, 1, 4, count_include_pad=False)


@pytest.fixture
def restorer():
    return FaceRestorer(Blur(), detector="yunet")


@pytest.fixture
def astronaut(repo):
    return load_rgb(repo / "inputs/astronaut.jpg")


def psnr(one, other):
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))


def lines(folder):
    """Return the lines of an output folder's manifest."""
    return [json.loads(line) for line in (folder / "manifest-0.jsonl").open()]


def colors(face):
    """Embed a face as its colours at 4×4 places."""
    small = cv2.resize(face.astype(np.float32), (4, 4), interpolation=cv2.INTER_AREA).ravel()
    return small / np.linalg.norm(small)


def test_clean_faces_stay_above_34_db_and_degraded_ones_are_replaced(restorer, shipped_faces):
    for clean in mosaics(shipped_faces):
        low = cv2.GaussianBlur(clean, (0, 0), 5)
        crops = [clean, low]
        restored = restorer.restore_aligned(crops)
        assert psnr(restored[0], clean) < 28
        gentle, full = restorer.strengths(crops, restored)
        assert psnr(blend(clean, restored[0], gentle), clean) >= 34
        assert full >= 0.99 and psnr(blend(low, restored[1], full), restored[1]) > 50


@pytest.mark.parametrize("strength", [0, 0.25, 1, 1.0, np.float32(0.5)])
def test_a_number_pastes_every_face_with_that_strength(restorer, astronaut, strength):
    """The image is the one of ``paste_face`` with this strength, to the last bit."""
    result = restorer.restore(astronaut, strength=strength)
    found = restorer.find(astronaut)
    [new] = restorer.restore_aligned(found.crops)
    [face], [matrix], wanted = found.faces, found.matrices, astronaut.copy()
    mask = head_mask(head_turn(transform(face.landmarks, matrix)))
    paste_face(wanted, new, matrix, (1.0, 1.0), strength, mask)
    assert np.array_equal(result.image, wanted)
    assert np.array_equal(result.faces[0].restored, blend(found.crops[0], new, strength))
    assert result.faces[0].strength == strength


def test_each_face_gets_what_it_needs(restorer, astronaut):
    found = restorer.find(np.concatenate([astronaut, astronaut], axis=1))
    restored = restorer.restore_aligned(found.crops)
    assert restorer.strengths(found.crops, restored) == pytest.approx([1, 1], abs=0.02)
    result = restorer.assemble(replace(found, needed=[0.0, 0.5]), restored)
    width = astronaut.shape[1]
    assert np.array_equal(result.image[:, :width], astronaut)
    half = restorer.assemble(found, restored, strength=0.5).image
    assert np.array_equal(result.image[:, width:], half[:, width:])
    assert not np.array_equal(half[:, :width], astronaut)
    assert [face.strength for face in result.faces] == [0.0, 0.5]


@pytest.mark.parametrize("value", ["much", "1", "", "AUTO"])
def test_other_words_are_refused_by_name(restorer, astronaut, value):
    with pytest.raises(QuantFaceError, match=r"strength: found .*number from 0 to 1, or auto"):
        restorer.restore(astronaut, strength=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_limit_out_of_range_is_refused_by_name(restorer, astronaut, value):
    with pytest.raises(QuantFaceError, match=r"identity: found .*from 0 to 1"):
        restorer.restore(astronaut, identity=value)


def test_missing_weights_are_named_before_anything_is_done(astronaut, tmp_path):
    asked = []
    restorer = FaceRestorer(Blur(), detector="yunet", identity_weights=tmp_path / "a.onnx")
    restorer.find = asked.append
    with pytest.raises(QuantFaceError, match=r"--identity-weights: no file .*a\.onnx"):
        restorer.restore(astronaut, identity=0.5)
    assert not asked


@pytest.mark.parametrize("most", [0.0, 0.3, 0.505, 1.0])
def test_the_limit_is_kept_and_not_lower_than_it_must_be(most):
    """Bisection ends at the largest hundredth that keeps the limit."""
    crops = np.random.randint(0, 256, (2, 512, 512, 3), np.uint8)
    restored = [np.roll(cv2.GaussianBlur(crop, (0, 0), 40) // 3, 1, axis=2) for crop in crops]
    crops = [cv2.GaussianBlur(crop, (0, 0), 60) for crop in crops]
    for face in crops:
        face[..., 0] //= 4
    before = [most] * 2
    for least in (0.8, 0.95, 0.99, 0.999, 1.0):
        found = face_strengths(crops, restored, most, least, colors)
        for crop, new, strength, earlier in zip(crops, restored, found, before, strict=True):
            assert 0 <= strength <= earlier
            own = colors(crop)
            assert strength == 0 or colors(blend(crop, new, strength)) @ own >= least
            beyond = min(strength + 0.011, most)
            assert strength == most or colors(blend(crop, new, beyond)) @ own < least
        before = found
    assert face_strengths(crops, restored, most, 0.0, colors) == [most] * 2


@pytest.mark.slow
def test_identity_holds_after_a_run(restore, photographs, mobileface, tmp_path):
    embed, own = (
        FaceEmbedder(mobileface),
        ("--runtime", "reference", "--identity-weights", mobileface),
    )
    found = []
    for least in (0.5, 0.9, 1.0):
        out = tmp_path / f"out{least}"
        assert restore("-i", photographs, "-o", out, "--identity", least, *own)[0] == 0
        for path in sorted((out / "cropped_faces").iterdir()):
            before, after = load_rgb(path), load_rgb(out / "restored_faces" / path.name)
            assert embed(before) @ embed(after) >= least - 1e-6
        records = lines(out)
        assert all(record["settings"]["identity"]["least"] == least for record in records)
        found.append([record["strength"][0] for record in records])
    assert np.all(np.diff(found, axis=0) <= 0) and found[-1] == [0, 0, 0] and max(found[1]) < 1


@pytest.mark.slow
def test_resuming_follows_the_limit(restore, photographs, mobileface):
    words = ("-i", photographs, *ALIGNED, "--resume", "--identity-weights", mobileface)
    assert "3 images" in restore(*words, "--identity", 0.9)[1]
    assert "done already" in restore(*words, "--identity", 0.9)[1]
    assert "3 images" in restore(*words, "--identity", 0.8)[1]
    assert "3 images" in restore(*words)[1]


def test_the_manifest_records_every_strength(restore, shipped_faces, tmp_path):
    sharp = mosaics(shipped_faces)[0]
    write_image(tmp_path / "in/a.png", RGBImage(sharp))
    write_image(tmp_path / "in/b.png", RGBImage(cv2.GaussianBlur(sharp, (0, 0), 6)))
    status, said, _ = restore("-i", tmp_path / "in", *ALIGNED)
    gentle, full = (record["strength"] for record in lines(tmp_path / "out"))
    assert status == 0 and gentle[0] <= 0.05 and full[0] >= 0.99 and len(gentle) == len(full) == 1
    assert "1 faces kept nearly as they are" in said
    assert lines(tmp_path / "out")[0]["settings"]["strength"] == "auto"
    status, said, _ = restore("-i", tmp_path / "in", *ALIGNED, "--strength", 0)
    assert status == 0 and "kept nearly" not in said
    assert [record["strength"] for record in lines(tmp_path / "out")[2:]] == [[0], [0]]


def test_strengths_of_many_frames_are_summed_up():
    found = Strengths()
    assert found.summary() == {}
    for values in ([0.0, 0.05], [], [1.0, 0.5, 0.06]):
        found.add(values)
    assert found.summary() == {"least": 0, "mean": 0.322, "most": 1}
    assert (found.count, found.gentle) == (5, 2)
