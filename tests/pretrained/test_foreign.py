"""Files of weights of other projects: recognized, loaded, quantized and saved without the file."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from architecture_networks import descriptor

from quantface_arch import load_model, quantize, save_checkpoint
from quantface_arch.archs.build import build_arch
from quantface_arch.archs.spandrel_net import describe, registry
from quantface_arch.background.load import load_background
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.foreign import rrdbnet_options
from quantface_arch.quant import load_checkpoint, quant_layers, read_metadata

pytest.importorskip("spandrel")

# Small networks by architecture: its class and options. They enlarge, sharpen, denoise and relight.
NETWORKS = {
    "Compact": ("Compact", {"num_feat": 16, "num_conv": 2, "upscale": 4}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}),
    "SwinIR": (
        "SwinIR",
        {"embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 8}
        | {"upscale": 2, "upsampler": "pixelshuffledirect"},
    ),
    "NAFNet": ("NAFNet", {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1], "width": 8}),
    "SCUNet": ("SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}),
}


def original(name, seed=1):
    """Return spandrel's description of a small network with random weights."""
    cls, options = NETWORKS[name]
    torch.manual_seed(seed)
    net = getattr(importlib.import_module(f"spandrel.architectures.{name}"), cls)(**options)
    return registry().load(net.state_dict())


def saved(name, folder):
    path = folder / f"{name}.pth"
    torch.save({"params_ema": original(name).model.state_dict()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_loaded_as_spandrel_loads_it(name, tmp_path):
    x = torch.rand(2, 3, 64, 64)
    expected = original(name)
    net = load_model(saved(name, tmp_path))
    with torch.no_grad():
        y = torch.cat([expected(image) for image in x.split(1)])
        low, high = net.input_range
        before = x * (high - low) + low
        given = before.clone()
        found = (net(given) - low) / (high - low)
    assert torch.equal(given, before)
    assert torch.allclose(found.clamp(0, 1), y, atol=1e-5)
    assert y.shape[-1] == 64 * expected.scale


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantized_network_is_loaded_without_the_file(name, tmp_path):
    path = saved(name, tmp_path)
    net = load_model(path)
    quantize(net, "w8a8", torch.rand(2, 3, 64, 64), progress=False)
    save_checkpoint(net, tmp_path / "small.safetensors", net.arch_options)
    path.unlink()
    again = load_checkpoint(tmp_path / "small.safetensors", build_arch)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), again(x))
    assert read_metadata(tmp_path / "small.safetensors")["arch"]["id"] == name
    assert any(quant_layers(again))


@pytest.mark.slow
@torch.no_grad()
def test_weights_that_are_made_of_others_in_every_call_are_quantized(tmp_path):
    x = torch.rand(1, 3, 48, 48)
    net = load_model(saved("SPAN", tmp_path))
    before = net(x)
    quantize(net, "w8a8", torch.rand(2, 3, 64, 64), progress=False)
    assert (net(x) - before).square().mean() < 0.002 * before.square().mean()


@torch.no_grad()
def test_networks_that_take_one_image_restore_batches(tmp_path):
    torch.save(descriptor("DRUNet").model.state_dict(), tmp_path / "net.pth")
    net, x = load_model(tmp_path / "net.pth"), torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x), torch.cat([net(image) for image in x.split(1)]))


@pytest.mark.slow
def test_an_rrdbnet_with_other_layers_is_another_network(tmp_path):
    found = descriptor("MMRealSR").model.state_dict()
    assert rrdbnet_options(found) is None
    plain = {name: value for name, value in found.items() if name.startswith(("conv_", "body."))}
    assert rrdbnet_options(plain) is not None
    torch.save(found, tmp_path / "net.pth")
    assert load_model(tmp_path / "net.pth").arch_options["id"] == "MMRealSR"


def test_networks_that_enlarge_enlarge_backgrounds(tmp_path, aligned_face):
    upsampler = load_background(str(saved("Compact", tmp_path)), "reference")
    assert upsampler(aligned_face[:60, :70]).shape == (240, 280, 3)
    windowed = load_background(str(saved("SwinIR", tmp_path)), "reference")
    assert windowed.scale == 2 and windowed(aligned_face[:60, :70]).shape == (120, 140, 3)
    with pytest.raises(QuantFaceError, match="expected a network that enlarges"):
        load_background(str(saved("NAFNet", tmp_path)), "reference")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "NoSuchNet"}, "id: found 'NoSuchNet', allowed is one of .*ESRGAN"),
        ({"cls": "os.system"}, "it has no class 'os.system'"),
        ({"cls": "__arch.SRVGG.nn"}, "it has no class '__arch.SRVGG.nn'"),
        ({"cls": "__arch..x"}, "it has no class"),
        ({"cls": "SRVGGNetCompact"}, "it has no class"),
        ({"options": {"no_such": 1}}, "Compact: .*no_such"),
        ({"options": {"num_feat": -1}}, "Compact: "),
    ],
)
def test_wrong_options_are_named(change, said):
    options = describe(original("Compact"))
    assert build_arch(options)
    with pytest.raises(QuantFaceError, match=said):
        build_arch({**options, **change})


def test_files_of_other_networks_are_refused_with_their_keys(tmp_path):
    torch.save({"some.weight": torch.rand(3), "bias": torch.rand(2)}, tmp_path / "other.pth")
    said = r"other\.pth: none of the \d+ architectures that spandrel knows .*some\.weight"
    with pytest.raises(QuantFaceError, match=said):
        load_model(tmp_path / "other.pth")
    grey = importlib.import_module("spandrel.architectures.Compact").Compact(
        num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=1, upscale=2
    )
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    with pytest.raises(QuantFaceError, match=re.escape("found 1 channels to 1 (SR)")):
        load_model(tmp_path / "grey.pth")
