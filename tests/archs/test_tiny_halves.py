"""Tiny encoders and decoders in the VAE's place: latents, quantization, compilation, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from quant_helpers import sqnr
from safetensors.torch import load_file, save_file
from small_networks import RRDB, TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.tiny import HALVES
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.tiny_vae import load_half
from quantface_arch.quant import load_checkpoint, quant_layers, read_metadata, save_checkpoint
from quantface_arch.runtime.openvino import load

SIZES = {"num_blocks": [1, 1, 1], "block_out_channels": [16, 16, 16]}
X = torch.rand(1, 3, 64, 64) * 2 - 1


def autoencoder(**options):
    """A tiny autoencoder for TINY: patches of 12 channels, 4 latent channels, 3 resolutions."""
    return AutoencoderTiny(
        in_channels=12,
        out_channels=12,
        **{
            "latent_channels": 4,
            "encoder_block_out_channels": (16, 16, 16),
            "decoder_block_out_channels": (16, 16, 16),
            "num_encoder_blocks": (1, 1, 1),
            "num_decoder_blocks": (1, 1, 1),
            **options,
        },
    )


@pytest.fixture
def source(tmp_path):
    """Return a folder in diffusers' layout, and its tensors."""
    made = autoencoder().eval()
    made.save_pretrained(tmp_path / "taesd")
    return str(tmp_path / "taesd"), made


def float_net():
    net = build_arch(TINY).eval()
    net.arch_options = dict(TINY)
    return net


@torch.no_grad()
def test_halves_work_in_the_scaled_latent(source):
    path, wanted = source
    net = float_net()
    for half in HALVES:
        load_half(net, half, path)
    patches = torch.nn.functional.pixel_unshuffle(X, net.patch_size)
    z, _ = net.encode_latent(X)
    assert net.latent_spread == 4
    latent = z / net.latent_spread
    assert torch.allclose(latent, wanted.encode(patches).latents, atol=1e-5)
    picture = torch.nn.functional.pixel_shuffle(wanted.decode(latent).sample, net.patch_size)
    assert torch.allclose(net.decode(z), picture, atol=1e-5)
    # The latent is known exactly, so noise changes nothing.
    noisy, kl = net.encode_latent(X, torch.randn_like(z))
    assert torch.allclose(noisy, z, atol=1e-4) and bool(kl.isfinite())


@pytest.mark.parametrize("half", HALVES)
def test_the_vaes_half_is_gone_and_the_options_rebuild_the_rest(source, half):
    net = float_net()
    load_half(net, half, source[0])
    names = set(net.state_dict())
    conv = {"encoder": "vae.quant_conv.", "decoder": "vae.post_quant_conv."}[half]
    assert not any(name.startswith((f"vae.{half}.", conv)) for name in names)
    again = build_arch(net.arch_options)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(X), net(X))


@pytest.mark.slow
def test_the_command_writes_a_small_file_that_openvino_runs(
    load_script, run_script, source, tmp_path, monkeypatch
):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "faces").mkdir()
    for number in range(2):
        noise = np.random.randint(0, 256, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"faces/{number}.png"), noise)
    save_checkpoint(build_arch(TINY), tmp_path / "float.safetensors", TINY)
    words = ["--model", tmp_path / "float.safetensors", "-i", tmp_path / "faces", "--size", 64]
    words += ["-o", tmp_path / "fast.safetensors", "--recipe", "w4a8", "--rank", 0]
    words += ["--balance", "none"]
    status, _, err = run_script(
        load_script("quantize"), *words, "--fast-decoder", source[0], "--fast-encoder", source[0]
    )
    assert status == 0, err
    assert read_metadata(tmp_path / "fast.safetensors")["arch"]["fast_decoder"] == SIZES
    reference = load_checkpoint(tmp_path / "fast.safetensors", build_arch).eval()
    bits = {layer.name: layer.weight_spec.bits for layer in quant_layers(reference)}
    tiny = {name: width for name, width in bits.items() if name.startswith("fast_")}
    ends = ("fast_encoder.layers.0", "fast_encoder.layers.6")
    ends += ("fast_decoder.layers.0", "fast_decoder.layers.9")
    assert {name for name, width in tiny.items() if width == 8} == {*ends}
    assert len(tiny) == 26
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        network = load(tmp_path / "fast.safetensors", build_arch)
        assert sqnr(reference.decode(z), network.decode(z)) > 20
        assert sqnr(reference.encode_moments(X)[:, :4], network.encode_moments(X)[:, :4]) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 8}, "of another shape: layers.0.weight"),
        ({"scaling_factor": 0.5}, "scaling_factor: found 0.5, expected 1"),
        (
            {"decoder_block_out_channels": (16, 16), "num_decoder_blocks": (1, 1)},
            "one number for each of the VAE's 3 resolutions",
        ),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path, options, message):
    autoencoder(**options).save_pretrained(tmp_path / "other")
    net = float_net()
    with pytest.raises(QuantFaceError, match=message):
        load_half(net, "decoder", str(tmp_path / "other"))


def test_a_folder_of_something_else_and_another_network_are_refused(
    load_script, run_script, source, tmp_path
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantFaceError, match="empty: not a tiny autoencoder"):
        load_half(float_net(), "decoder", str(tmp_path / "empty"))
    (tmp_path / "faces").mkdir()
    assert cv2.imwrite(str(tmp_path / "faces/a.png"), np.zeros((32, 32, 3), np.uint8))
    save_checkpoint(build_arch(RRDB), tmp_path / "sr.safetensors", RRDB)
    words = ["--model", tmp_path / "sr.safetensors", "-i", tmp_path / "faces"]
    words += ["-o", tmp_path / "out.safetensors", "--fast-decoder", source[0]]
    status, _, err = run_script(load_script("quantize"), *words)
    assert status == 2 and "is not an OSDFace" in err
    with pytest.raises(QuantFaceError, match="unknown key channels"):
        build_arch({**TINY, "fast_decoder": {"channels": 3}})


def test_a_file_that_lacks_a_weight_is_refused(source):
    path = Path(source[0]) / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["decoder.layers.0.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(QuantFaceError, match=r"missing keys: decoder\.layers\.0\.weight"):
        load_half(float_net(), "decoder", source[0])


@pytest.mark.slow
def test_the_commands_help_does_not_wait_for_diffusers(repo):
    code = "import sys, quantize; quantize.make_parser(); sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo / "scripts").returncode == 0
