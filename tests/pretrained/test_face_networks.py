"""Face restorers of others are called as their authors call them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantface_arch import save_checkpoint
from quantface_arch.archs.build import build_arch
from quantface_arch.archs.spandrel_net import SIGNED_CALLS, SpandrelNet
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.fidelity import with_fidelity
from quantface_arch.quant import read_metadata

GFPGAN = {"type": "SpandrelNet", "id": "GFPGAN", "signed": True}
GFPGAN["cls"] = "__arch.gfpganv1_clean_arch.GFPGANv1Clean"
COMPACT = {"type": "SRVGGNetCompact", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}
CODEFORMER = {"type": "SpandrelNet", "id": "CodeFormer", "signed": True}
CODEFORMER |= {"cls": "__arch.codeformer.CodeFormer", "options": {"n_layers": 1}}


@torch.no_grad()
def test_gfpgan_takes_signed_faces_and_its_stored_noise():
    gfpgan = pytest.importorskip("spandrel.architectures.GFPGAN")
    torch.manual_seed(0)
    sizes = {"out_size": 32, "num_style_feat": 16, "narrow": 0.0625, "input_is_latent": True}
    net = gfpgan.GFPGAN(**sizes, different_w=True, sft_half=True).eval()
    for module in net.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.numel() == 1:
            module.weight.fill_(0.5)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    wanted = net(x, randomize_noise=False)[0]
    assert not torch.equal(net(x)[0], wanted)
    # spandrel builds GFPGAN at its full size alone.
    module = "__arch.SRVGG.SRVGGNetCompact"
    whole = SpandrelNet("Compact", module, {"num_feat": 8, "num_conv": 1}, signed=True)
    whole.net, whole.signed_call = net, SIGNED_CALLS["GFPGAN"]
    assert torch.equal(whole(x), wanted)


@pytest.mark.slow
@torch.no_grad()
def test_codeformer_takes_signed_faces_and_a_fidelity():
    pytest.importorskip("spandrel_extra_arches")
    torch.manual_seed(0)
    net = build_arch({**CODEFORMER, "fidelity": 0.25}).eval()
    x = torch.rand(1, 3, 512, 512) * 2 - 1
    assert torch.equal(net(x), net.net(x, weight=0.25)[0])


def test_another_fidelity_is_another_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    net = build_arch(COMPACT)
    save_checkpoint(net, tmp_path / "net.safetensors", CODEFORMER, {"note": "kept"})
    changed = with_fidelity(tmp_path / "net.safetensors", 0.25)
    before, after = read_metadata(tmp_path / "net.safetensors"), read_metadata(changed)
    assert after == {**before, "arch": {**CODEFORMER, "fidelity": 0.25}}
    old, new = load_file(tmp_path / "net.safetensors"), load_file(changed)
    assert old.keys() == new.keys() == net.state_dict().keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert with_fidelity(changed, 0.25).read_bytes() == changed.read_bytes()
    assert read_metadata(with_fidelity(changed, 1.0))["arch"]["fidelity"] == 1


def test_only_codeformer_has_a_fidelity(tmp_path):
    save_checkpoint(build_arch(COMPACT), tmp_path / "net.safetensors", COMPACT)
    with pytest.raises(QuantFaceError, match=r"net\.safetensors is no CodeFormer; found SRVGGNet"):
        with_fidelity(tmp_path / "net.safetensors", 0.5)
    for wrong in (1.5, "much"):
        with pytest.raises(QuantFaceError, match=r"fidelity: found .*allowed is 0 to 1"):
            build_arch({**GFPGAN, "fidelity": wrong})
