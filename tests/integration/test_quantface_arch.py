"""Any architecture from one entry of an options file: names, weights of every kind, errors."""

from __future__ import annotations

import copy

import osdface_files as files
import pytest
import torch
from accelerate import init_empty_weights
from small_networks import RRDB, TINY
from torch import nn

import quantface_arch.register  # noqa: F401
from basicsr.archs import build_network
from basicsr.models import build_model
from quantface_arch.archs.build import build_arch
from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import quant_layers, quantize, save_checkpoint

SWINIR = {
    "type": "SwinIR",
    "upscale": 2,
    "img_size": 16,
    "window_size": 8,
    "depths": [2],
    "embed_dim": 24,
    "num_heads": [2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}
RECIPE = {
    "name": "w6a8",
    "balance": {"kind": "auto", "alpha": 0.5},
    "branch": {"svd": 2, "distill": 2, "budget": 1.0},
}
PLAIN = {"name": "w8a8", "balance": {"kind": "none"}, "branch": {"svd": 0}}


def arch(options, weights=None, **more):
    return build_network({"type": "QuantFaceArch", "arch": options, "weights": weights, **more})


def moved(net):
    """Enlarge the weights: BasicSR's begin near zero, which would hide mistakes."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("options", [RRDB, SWINIR], ids=lambda options: options["type"])
def test_basicsrs_archs_are_quantized_saved_and_loaded_bit_by_bit(options, tmp_path):
    net, images = moved(arch(options)), torch.rand(3, 3, 16, 16)
    assert type(net) is type(build_arch(options))
    assert net.arch_options == options
    with torch.no_grad():
        wanted = net(images)
        quantize(net, RECIPE, images, progress=False)
        found = net(images)
    assert any(layer.rank and layer.balance.kind != "none" for layer in quant_layers(net))
    assert (found - wanted).square().mean() < 0.01 * wanted.var()
    save_checkpoint(net, tmp_path / "net.safetensors", net.arch_options)
    loaded = arch(copy.deepcopy(options), str(tmp_path / "net.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), found)
    assert loaded.arch_options == options
    assert set(loaded.state_dict()) == set(net.state_dict())


def test_basicsrs_own_model_tests_a_quantized_checkpoint(tmp_path):
    net, images = moved(arch(RRDB)), torch.rand(1, 3, 16, 16)
    quantize(net, PLAIN, torch.rand(3, 3, 16, 16), progress=False)
    save_checkpoint(net, tmp_path / "net.safetensors", net.arch_options)
    options = {
        "model_type": "SRModel",
        "num_gpu": 0,
        "dist": False,
        "is_train": False,
        "path": {"pretrain_network_g": None},
        "network_g": {"type": "QuantFaceArch", "weights": str(tmp_path / "net.safetensors")},
    }
    model = build_model(options)
    model.feed_data({"lq": images})
    model.test()
    with torch.no_grad():
        assert torch.equal(model.output, net(images))


@pytest.mark.slow
def test_weights_alone_are_enough_for_a_shipped_model():
    net = arch(None, "mini")
    assert net.arch_options["type"] == "OSDFace"
    same = arch({"type": "OSDFace", "preset": "mini2"}, "mini")
    for key, value in same.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_basicsrs_own_files_average_first_or_the_key_that_is_named(prefix, tmp_path):
    states = {}
    for shift, key in enumerate(("params", "params_ema")):
        net = build_arch(RRDB)
        nn.init.constant_(net.conv_first.bias, 1.0 + shift)
        states[key] = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save(states, tmp_path / "both.pth")
    torch.save({"params": states["params"]}, tmp_path / "one.pth")
    torch.save(states["params"], tmp_path / "bare.pth")
    for name, param_key, wanted in (
        ("both", None, 2),
        ("both", "params", 1),
        ("one", None, 1),
        ("bare", None, 1),
    ):
        net = arch(RRDB, str(tmp_path / f"{name}.pth"), param_key=param_key)
        assert (net.conv_first.bias == wanted).all()
    with pytest.raises(QuantFaceError, match=r"one\.pth.*params.*params_ema"):
        arch(RRDB, str(tmp_path / "one.pth"), param_key="params_ema")


def test_osdfaces_folder(tmp_path):
    sizes = {part: {**PRESETS["osdface"][part], **files.TINY[part]} for part in files.TINY}
    written = files.write_osdface(tmp_path, sizes)
    net = arch({"type": "OSDFace", "preset": "osdface", **files.TINY}, str(tmp_path))
    assert net.arch_options["vae"] == files.TINY["vae"]
    bias = written["embedding_change"]["conv1.bias"]
    assert torch.equal(net.embedding_change.conv1.bias, bias)
    with pytest.raises(QuantFaceError, match=r"another arch.*OSDFace.*RRDBNet"):
        arch(RRDB, str(tmp_path))


@pytest.mark.slow
def test_weights_of_another_arch_name_file_key_and_what_was_expected(tmp_path):
    wide = {**RRDB, "num_feat": 24}
    torch.save({"params": build_arch(wide).state_dict()}, tmp_path / "wide.pth")
    torch.save({"params": build_arch(SWINIR).state_dict()}, tmp_path / "swin.pth")
    save_checkpoint(build_arch(wide), tmp_path / "wide.safetensors", wide)
    cases = {
        "wide.pth": r"wide\.pth.*conv_first\.weight \(found \(24, 12, 3, 3\), expected \(16, 12",
        "swin.pth": r"swin\.pth.*RRDBNet.*missing: body\.0.*unexpected: .*shape: conv_first",
        "wide.safetensors": r"wide\.safetensors.*num_feat: found 24, expected 16",
    }
    for name, words in cases.items():
        with pytest.raises(QuantFaceError, match=words):
            arch(RRDB, str(tmp_path / name))
    with pytest.raises(QuantFaceError, match=r"mini.*type: found 'OSDFace', expected 'RRDBNet'"):
        arch(RRDB, "mini")
    with pytest.raises(QuantFaceError, match=r"mini\.safetensors: key vae.*not found"):
        arch({"type": "OSDFace", "preset": "mini2", "vae": {"layers_per_block": 3}}, "mini")


def test_wrong_options_and_damaged_files_are_named(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    torch.save({"params": nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for options, weights, words in (
        (None, None, "option arch: missing"),
        (None, str(tmp_path / "list.pth"), "list.pth: found list"),
        ("RRDBNet", None, "option arch: found 'RRDBNet'"),
        ({"type": "QuantFaceArch", "arch": RRDB}, None, "option arch"),
        ({"type": "NoNet"}, None, "NoNet"),
        ({**RRDB, "widht": 3}, None, "widht"),
        (RRDB, "maxi", "maxi"),
        (RRDB, str(tmp_path / "broken.pth"), r"broken\.pth: damaged"),
        (RRDB, str(tmp_path / "pickled.pth"), r"pickled\.pth.*Linear"),
        (RRDB, str(tmp_path / "list.pth"), r"list\.pth: found list"),
    ):
        with pytest.raises(QuantFaceError, match=words):
            arch(options, weights)


def test_input_sources_are_what_the_unet_concatenates():
    net = build_arch(TINY).eval()
    sources = net.input_sources()
    assert all(sum(parts) == net.get_submodule(n).in_channels for n, parts in sources.items())
    assert {"unet.up_blocks.0.resnets.0.conv1", "unet.up_blocks.0.resnets.0.conv_shortcut"} <= set(
        sources
    )
    joined = []
    original = torch.cat

    def watch(tensors, dim=0):
        if dim == 1 and len(tensors) == 2:
            joined.append(tuple(tensor.shape[1] for tensor in tensors))
        return original(tensors, dim=dim)

    blocks = [resnet for block in net.unet.up_blocks for resnet in block.resnets]
    seen = []
    for resnet in blocks:
        resnet.register_forward_pre_hook(lambda *_: seen.append(joined[-1]))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "cat", watch)
        net(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert seen == [parts for name, parts in sources.items() if name.endswith("conv1")]
    assert len(seen) == len(blocks) > 2


def test_input_sources_of_sd_sizes():
    with init_empty_weights():
        net = build_arch({"type": "OSDFace"})
    sources = net.input_sources()
    assert len(sources) == 2 * 12
    assert sources["unet.up_blocks.1.resnets.2.conv1"] == (1280, 640)
    assert sources["unet.up_blocks.3.resnets.0.conv_shortcut"] == (640, 320)
    for name, parts in sources.items():
        assert min(parts) > 0
        assert sum(parts) == net.get_submodule(name).in_channels
