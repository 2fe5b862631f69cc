"""OSDFace: the published sizes, and every step of the pipeline against hand-computed values."""

from __future__ import annotations

import copy

import numpy as np
import osdface_files as files
import pytest
import torch
from accelerate import init_empty_weights

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def alpha_bar():
    """ᾱ₃₉₉ of the scaled-linear schedule from 0.00085 to 0.012, in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)[399]


@pytest.fixture
def model():
    """The osdface preset at tiny sizes."""
    return build_arch({"type": "OSDFace", "preset": "osdface", **files.TINY}).eval()


@pytest.fixture
def lq():
    return torch.rand(1, 3, 64, 64) * 2 - 1


def test_published_sizes():
    with init_empty_weights():
        model = build_arch({"type": "OSDFace"})
    assert millions(model.unet) == pytest.approx(865.91, abs=0.005)
    assert millions(model.vae) == pytest.approx(83.65, abs=0.005)
    # The checkpoint has 170 tensors; the second norms of three attentions are not used.
    shapes = files.encoder_shapes(PRESETS["osdface"]["vre"])
    assert len(shapes) == 170
    wanted = {k: v for k, v in shapes.items() if "attn" not in k or ".norm2." not in k}
    assert len(wanted) == 164
    encoder = model.vre.encoder.state_dict()
    assert {key: tuple(value.shape) for key, value in encoder.items()} == wanted
    change = files.embedding_change(PRESETS["osdface"]["vre"])
    found = model.embedding_change.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in change.items()}
    assert tuple(model.vre.quantize.embedding.weight.shape) == (1024, 512)
    assert model.latent_shape(2, 512, 512) == (2, 4, 64, 64)
    assert all(layer in dict(model.unet.named_modules()) for layer in files.OLDEST_LAYERS)


def test_attention_never_holds_the_whole_matrix(model):
    kinds = {type(m.processor).__name__ for m in model.modules() if hasattr(m, "processor")}
    assert kinds == {"AttnProcessor2_0"}


def test_mini_is_small():
    with init_empty_weights():
        model = build_arch({"type": "OSDFace", "preset": "mini"})
    assert 1 < millions(model) <= 8


def test_x0_is_computed_in_float64(model):
    z, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        eps, x0 = model.predict_x0(z, prompt)
        expected_eps = model.unet(z, 399, encoder_hidden_states=prompt).sample
    assert torch.equal(eps, expected_eps) and x0.dtype == torch.float32
    a = alpha_bar()
    expected = (z.double().numpy() - np.sqrt(1 - a) * eps.double().numpy()) / np.sqrt(a)
    np.testing.assert_allclose(x0.numpy(), expected, rtol=1e-5, atol=1e-5)
    # Only float32's rounding is lost.
    exact = (z.double() - model.sqrt_one_minus_alpha * eps.double()) / model.sqrt_alpha
    assert torch.equal(x0, exact.float())
    assert model.sqrt_alpha**2 == pytest.approx(a, rel=1e-5)
    assert model.sqrt_alpha**2 + model.sqrt_one_minus_alpha**2 == pytest.approx(1, abs=1e-15)


def test_latent_is_the_posterior_times_the_scaling_factor(model, lq):
    with torch.no_grad():
        moments = model.vae.quant_conv(model.vae.encoder(lq))
        mean, logvar = moments.chunk(2, dim=1)
        z, _ = model.encode_latent(lq)
        torch.testing.assert_close(z, mean * 0.18215)
        noise = torch.randn(model.latent_shape(1, 64, 64))
        z, _ = model.encode_latent(lq, noise)
        torch.testing.assert_close(z, (mean + torch.exp(0.5 * logvar) * noise) * 0.18215)
        assert not torch.allclose(z, mean * 0.18215)


def test_decoder_sees_the_latent_unscaled(model):
    x0 = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = model.vae.decoder(model.vae.post_quant_conv(x0 / 0.18215))
        torch.testing.assert_close(model.decode(x0), expected)


def test_forward_is_the_chain_of_its_steps(model, lq):
    with torch.no_grad():
        prompt = model.embedding_change(model.vre(lq)[0])
        z, _ = model.encode_latent(lq)
        image = model.decode(model.predict_x0(z, prompt)[1])
        out = model(lq)
        assert prompt.shape == (1, 5, 16)
        torch.testing.assert_close(out, image.clamp(-1, 1))
        assert torch.equal(out, model(lq))
        model.train()
        torch.testing.assert_close(model(lq), image)


def test_noise_decides_the_result(model, lq):
    def noise(seed):
        return torch.randn(model.latent_shape(1, 64, 64), generator=torch.manual_seed(seed))

    with torch.no_grad():
        first = model(lq, noise(1))
        assert torch.equal(first, model(lq, noise(1)))
        assert not torch.equal(first, model(lq, noise(2)))
        assert torch.equal(model(lq, 0 * noise(1)), model(lq))


def test_pictures_of_a_batch_do_not_mix(model, lq):
    other = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        together = model(torch.cat([lq, other]))
        torch.testing.assert_close(together[:1], model(lq), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together[1:], model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height, width", [(64, 96), (100, 64), (63, 65), (32, 32)])
def test_sides_that_cannot_be_halved_are_refused(model, height, width):
    with pytest.raises(QuantFaceError, match=f"{width}x{height} pixels.*multiples of 64"):
        model(torch.zeros(1, 3, height, width))


def test_gradients_reach_every_part(lq):
    model = build_arch({"type": "OSDFace", "preset": "osdface", **files.TINY}).train()
    model(lq).square().mean().backward()
    for name in ("vre.encoder.conv_in", "embedding_change.conv1", "vae.encoder.conv_in"):
        grad = model.get_submodule(name).weight.grad
        assert grad.isfinite().all() and grad.any(), name
    assert model.unet.conv_in.weight.grad.any() and model.vae.decoder.conv_out.weight.grad.any()


def test_unknown_options_are_named():
    with pytest.raises(QuantFaceError, match="preset: found 'huge', allowed are osdface, mini"):
        build_arch({"type": "OSDFace", "preset": "huge"})
    with pytest.raises(QuantFaceError, match=r"OSDFace.*colour"):
        build_arch({"type": "OSDFace", "preset": "mini", "colour": 1})
    with pytest.raises(QuantFaceError, match="OSDFake"):
        build_arch({"type": "OSDFake"})


def test_other_shapes_are_refused(model, lq):
    with pytest.raises(QuantFaceError, match=r"\(1, 4, 64, 64\)"):
        model(torch.zeros(1, 4, 64, 64))
    with pytest.raises(QuantFaceError, match=r"\(3, 64, 64\)"):
        model(torch.zeros(3, 64, 64))
    wanted = model.latent_shape(1, 64, 64)
    with pytest.raises(QuantFaceError, match="noise of shape"):
        model(lq, torch.zeros(2, *wanted[1:]))


def test_half_precision_runs_throughout(model):
    """Eight images are used, since roundings in a single one add up differently per processor."""
    lq = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        wanted = model(lq)
        half = copy.deepcopy(model).bfloat16()(lq.bfloat16())
    assert half.dtype == torch.bfloat16
    errors, values = (x.abs().mean((1, 2, 3)) for x in (half.float() - wanted, wanted))
    assert (errors / values).median() < 0.1
