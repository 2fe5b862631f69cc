"""Post-training quantization of real architectures: BasicSR's, diffusers', ours."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from small_networks import RRDB
from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.quant import Recipe, convert, load_checkpoint, quantize, save_checkpoint

ENDS = ("vae.encoder", "vae.decoder", "unet")


class Autoencoder(nn.Module):
    """A tiny diffusers VAE, mean of the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8)

    def forward(self, x):
        return self.vae.decode(self.vae.encode(x).latent_dist.mean).sample


def signal_to_noise(reference, found):
    noise = (found - reference).square().mean()
    return float(10 * torch.log10(reference.square().mean() / noise))


@pytest.mark.slow
@pytest.mark.parametrize("build", [lambda _: build_arch(RRDB), lambda _: Autoencoder()])
def test_w8a8_and_w4a8_follow_the_float_network(build, tmp_path):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    ratios = {}
    for recipe in ("w4a8", "w8a8"):
        torch.manual_seed(4)
        model = build(None).eval()
        with torch.no_grad():
            reference = model(images)
            report = quantize(model, recipe, images, progress=False)
            ratios[recipe] = signal_to_noise(reference, model(images))
            save_checkpoint(model, tmp_path / "m.safetensors", RRDB)
            loaded = load_checkpoint(tmp_path / "m.safetensors", build)
            assert torch.equal(loaded(images), model(images))
        assert report.skipped == ()
    assert ratios["w8a8"] > 25
    assert ratios["w8a8"] > ratios["w4a8"] + 5 > 13


def test_osdface_keeps_8_bits_where_a_settings_name_allows_it_and_nowhere_else():
    model = build_arch({"type": "OSDFace", "preset": "mini"})
    recipe = Recipe.from_dict({"name": "w4a4", "eight_bit": list(OSDFace.eight_bit_patterns)})
    report = convert(model, recipe)
    assert [layer.kind for layer in report.skipped] == ["Embedding"]
    eight = {name for name, bits in report.bits.items() if bits == (8, 8)}
    assert all(bits in ((8, 8), (4, 4)) for bits in report.bits.values())
    restorer = {name for name in eight if name.startswith(("vae.", "unet."))}
    ends = {f"{part}.conv_{end}" for part in ENDS for end in ("in", "out")}
    assert restorer == ends | {f"unet.time_embedding.linear_{number}" for number in (1, 2)}
    rest = set(report.bits) - restorer
    assert eight - restorer == {n for n in rest if n.startswith(("vre.", "embedding_change."))}
