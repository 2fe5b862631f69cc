"""The embedded restorers give back the colours of their input, which an encoder can lose."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import avg_pool2d

from quantface_arch import load_model
from quantface_arch.utils.images import load_rgb


def color_error(name, faces):
    """Return the mean error of block means after restoring clean faces in all hues."""
    model = load_model(name, runtime="reference")
    errors = []
    for path in faces:
        face = torch.tensor(load_rgb(path)).permute(2, 0, 1)[None].float() / 127.5 - 1
        for order in itertools.permutations(range(3)):
            image = face[:, list(order)]
            with torch.no_grad():
                found = model(image)
            errors.append(float((avg_pool2d(found, 16) - avg_pool2d(image, 16)).abs().mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("name", ["mini", "mini-w4a8", "mini-fast-w4a8"])
def test_all_three_dimensions_of_colour_are_kept(name, shipped_faces):
    # An encoder that maps green to grey, as the first generation's did, gives 0.125.
    assert color_error(name, shipped_faces[:2]) < 0.05
