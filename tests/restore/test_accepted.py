"""What ``FaceRestorer.restore`` accepts and refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from quantface_arch.errors import QuantFaceError
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.images import load_rgb, read_image


@pytest.fixture
def restorer():
    return FaceRestorer(torch.nn.Identity(), detector="yunet")


def test_arrays_pil_images_paths_and_files_give_the_same(restorer, repo):
    path = repo / "inputs/astronaut.jpg"
    wanted = restorer.restore(load_rgb(path))
    for image in (path, str(path), Image.open(path), read_image(path)):
        found = restorer.restore(image)
        assert len(found.faces) == len(wanted.faces) == 1
        assert np.array_equal(found.image, wanted.image)


def test_a_pil_image_keeps_its_alpha_and_is_turned_upright(restorer):
    image = Image.new("RGBA", (40, 20), (10, 20, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    found = restorer.restore(image).rgb_image
    assert found.alpha is not None and (found.alpha == 40).all()
    assert found.size == (20, 40)


@pytest.mark.parametrize("name", ["strength", "upscale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 1.5, 9, "1", None])
def test_numbers_out_of_range_are_refused(restorer, name, value):
    image = np.zeros((32, 32, 3), np.uint8)
    allowed = {"strength": (0,), "upscale": (1.5,)}[name]
    if value in allowed:
        restorer.restore(image, **{name: value})
    else:
        with pytest.raises(QuantFaceError, match=rf"{name}: found .* expected a number from"):
            restorer.restore(image, **{name: value})


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((8, 32, 3), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        Image.new("I;16", (32, 32)),
        Image.new("F", (32, 32)),
        Image.new("RGB", (4, 4)),
        "missing.jpg",
        None,
        [1, 2, 3],
    ],
)
def test_other_images_are_refused(restorer, image):
    with pytest.raises(QuantFaceError):
        restorer.restore(image)
