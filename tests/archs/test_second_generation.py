"""The mini's second generation: the first one with a wider latent and a filter at its end."""

from __future__ import annotations

import pytest
import torch

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.osdface_arch import smooth


@pytest.mark.parametrize("pattern", [[[1, -1]], [[1], [-1]], [[1, -1], [-1, 1]]])
def test_the_filter_removes_patterns_with_a_period_of_two_pixels(pattern):
    tile = torch.tensor(pattern, dtype=torch.float32)
    image = tile.repeat(16 // tile.shape[0], 16 // tile.shape[1]).expand(1, 3, 16, 16)
    assert smooth(image)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_the_filter_keeps_flat_images_and_dtype():
    image = torch.full((2, 3, 8, 8), 0.3, dtype=torch.float64)
    assert torch.allclose(smooth(image), image) and smooth(image).dtype == torch.float64


def test_the_preset_has_at_most_twelve_million_parameters():
    net = build_arch({"type": "OSDFace", "preset": "mini2"})
    assert sum(parameter.numel() for parameter in net.parameters()) < 12e6
    assert net.smooth_output


def test_only_the_latent_and_the_filter_differ_from_the_first_generation():
    first = build_arch({"type": "OSDFace", "preset": "mini"})
    width = first.vae.config["latent_channels"]
    assert (
        build_arch({"type": "OSDFace", "preset": "mini2"}).latent_shape(1, 64, 64)[1] == 2 * width
    )
    second = build_arch(
        {
            "type": "OSDFace",
            "preset": "mini2",
            "vae": {"latent_channels": width},
            "unet": {"in_channels": width, "out_channels": width},
        }
    )
    second.load_state_dict(first.state_dict())
    lq = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        prompt, _ = first.eval().encode_prompt(lq)
        z, _ = first.encode_latent(lq)
        image = smooth(first.decode(first.predict_x0(z, prompt)[1]))
        assert torch.allclose(second.eval()(lq), image.clamp(-1, 1), atol=1e-6)
