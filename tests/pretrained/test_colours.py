"""The embedded restorers give back the colours of their input, which an encoder can lose."""

from __future__ import annotations

import itertools

import torch

from quantface_arch import load_model

# The corners of a cube inside that of all colours.
COLORS = list(itertools.product((-0.5, 0.5), repeat=3))


def color_error(name):
    """Return the mean error of flat patches of saturated colours on grey, without UNet."""
    model = load_model(name, runtime="reference")
    errors = []
    for color in COLORS:
        wanted = torch.tensor(color).view(3, 1, 1)
        image = torch.zeros(1, 3, 128, 128)
        image[..., 32:96, 32:96] = wanted
        with torch.no_grad():
            found = model(image, return_all=True, autoencode=True).image[0, :, 48:80, 48:80]
        errors.append(float((found - wanted).abs().mean()))
    return sum(errors) / len(errors)


def test_the_second_generation_keeps_all_three_dimensions_of_colour():
    error = color_error("mini2")
    assert error < 0.1
    # The first generation's encoder maps green to grey.
    assert error < color_error("mini") / 2
