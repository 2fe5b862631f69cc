"""spandrel loads checkpoints of this package once they are installed there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from quant_helpers import sqnr
from safetensors.torch import save_file

from quantface_arch import load_model
from quantface_arch.archs.build import build_arch
from quantface_arch.pretrained.names import resolve_model

spandrel = pytest.importorskip("spandrel")


@pytest.fixture(scope="module")
def loader():
    from quantface_arch.spandrel import install

    registry = spandrel.MAIN_REGISTRY.copy()
    install(registry)
    install(registry)
    return spandrel.ModelLoader(registry=registry)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model", ["mini", "mini-w4a8"])
def test_a_restorer_is_loaded_in_floating_point(loader, model):
    found = loader.load_from_file(resolve_model(model))
    assert (found.purpose, found.scale) == ("FaceSR", 1)
    image = torch.rand(1, 3, 70, 96)
    full = torch.nn.functional.pad(image, (0, 0, 0, 26), mode="reflect")
    wanted = (load_model("mini")(full * 2 - 1) + 1) / 2
    restored = found(image)
    assert restored.shape == image.shape
    distance = sqnr(wanted[..., :64, :], restored[..., :64, :])
    assert distance > (100 if model == "mini" else 22)
    assert not any("weight_scale" in name for name in found.model.state_dict())


@pytest.mark.slow
def test_other_files_are_loaded_as_before(loader, tmp_path):
    net = build_arch({"type": "SRVGGNetCompact", "num_feat": 8, "num_conv": 1, "upscale": 2})
    save_file(net.state_dict(), tmp_path / "compact.safetensors")
    assert loader.load_from_file(tmp_path / "compact.safetensors").architecture.id == "Compact"


@pytest.mark.slow
def test_nothing_is_known_before_the_installation(repo):
    code = """
import spandrel
from quantface_arch.pretrained.names import resolve_model
path = resolve_model("mini-w4a8")
try:
    spandrel.ModelLoader().load_from_file(path)
except spandrel.UnsupportedModelError:
    print("unknown")
from quantface_arch.spandrel import install
install()
print(spandrel.ModelLoader().load_from_file(path).architecture.id)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.stdout.split() == ["unknown", "QuantFace"], done.stderr
