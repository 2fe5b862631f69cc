"""The embedded restorers give back the colours of their input, which an encoder can lose."""

from __future__ import annotations

import itertools

import torch
from torch.nn.functional import avg_pool2d

from quantface_arch import load_model
from quantface_arch.utils.images import load_rgb


def color_error(name, faces):
    """Return the mean error of block means after encoding and decoding faces in all hues."""
    model = load_model(name, runtime="reference")
    errors = []
    for path in faces:
        face = torch.tensor(load_rgb(path)).permute(2, 0, 1)[None].float() / 127.5 - 1
        for order in itertools.permutations(range(3)):
            image = face[:, list(order)]
            with torch.no_grad():
                found = model(image, return_all=True, autoencode=True).image
            errors.append(float((avg_pool2d(found, 16) - avg_pool2d(image, 16)).abs().mean()))
    return sum(errors) / len(errors)


def test_the_second_generation_keeps_all_three_dimensions_of_colour(shipped_faces):
    first, second = (color_error(name, shipped_faces[:2]) for name in ("mini", "mini2"))
    # The first generation's encoder maps green to grey.
    assert second < first / 2 and second < 0.05
