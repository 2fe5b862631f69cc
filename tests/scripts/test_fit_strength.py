"""The command that fits how strongly faces are restored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sharp_faces import mosaics

from quantface_arch.faces.degraded import FITTED, MEASURES
from quantface_arch.utils.images import RGBImage, write_image


@pytest.fixture
def fit(load_script, run_script, tmp_path):
    """Return a function that runs the command, and returns status, stderr and the fitted file."""
    script = load_script("fit_strength")

    def call(*words):
        status, _, stderr = run_script(script, *words, "-o", tmp_path / "fitted.json")
        return status, stderr, tmp_path / "fitted.json"

    return call


@pytest.fixture
def sharp(shipped_faces, tmp_path):
    for index, face in enumerate(mosaics(shipped_faces)):
        write_image(tmp_path / f"sharp/{index}.png", RGBImage(face))
    return tmp_path / "sharp"


@pytest.mark.slow
def test_the_fit_has_the_signs_of_the_shipped_one_and_is_repeatable(fit, sharp):
    status, stderr, path = fit(sharp)
    assert status == 0, stderr
    fitted, shipped = json.loads(path.read_text()), json.loads(FITTED.read_text())
    assert fitted.keys() == shipped.keys() and tuple(fitted["weights"]) == MEASURES
    for name in MEASURES[:3]:
        assert np.sign(fitted["weights"][name]) == np.sign(shipped["weights"][name]), name
    assert fitted["faces"] == 4 and str(sharp) in fitted["command"]
    before = path.read_text()
    assert fit(sharp)[0] == 0 and path.read_text() == before


def test_faces_that_are_held_out_are_not_used(load_script, tmp_path):
    script = load_script("fit_strength")
    for index in range(40):
        write_image(tmp_path / f"some/{index}.png", RGBImage(np.zeros((16, 16, 3), np.uint8)))
    assert len(script.usable(tmp_path / "some", {})) == 40
    kept = script.usable(tmp_path / "some", {"some": 5})
    assert 20 < len(kept) < 40
    assert not [path for path in kept if script.held_out(path.stem, 5)]


def test_other_folders_and_sizes_are_refused(fit, repo, tmp_path):
    (tmp_path / "empty").mkdir()
    status, stderr, path = fit(tmp_path / "empty")
    assert status == 2 and f"no images to fit on in {tmp_path / 'empty'}" in stderr
    status, stderr, path = fit(repo / "quantface_arch/data/faces/val")
    assert status == 1 and "found 256x256 pixels, 512x512 are needed" in stderr
    assert not path.exists()
