"""The mini's second generation: the filter at its end, and deepening a UNet."""

from __future__ import annotations

import pytest
import torch

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.osdface_arch import smooth
from quantface_arch.errors import QuantFaceError


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
    assert sum(p.numel() for p in net.parameters()) < 12e6 and net.smooth_output


def test_a_deepened_network_predicts_what_the_shallow_one_does(load_script):
    deepen = load_script("deepen_unet").deepen
    shallow = build_arch({"type": "OSDFace", "preset": "mini"}).eval()
    deep = deepen(shallow, "mini2").eval()
    lq = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        prompt, _ = shallow.encode_prompt(lq)
        z, _ = shallow.encode_latent(lq)
        assert torch.equal(deep.predict_noise(z, prompt), shallow.predict_noise(z, prompt))
        image = smooth(shallow.decode(shallow.predict_x0(z, prompt)[1]))
        assert torch.allclose(deep(lq), image.clamp(-1, 1), atol=1e-6)


def test_presets_of_other_widths_are_refused(load_script):
    shallow = build_arch({"type": "OSDFace", "preset": "mini", "vre": {"channels": 8}})
    with pytest.raises(QuantFaceError, match=r"vre.* does not fit"):
        load_script("deepen_unet").deepen(shallow, "mini2")
