"""A checkpoint is loaded and compared before it is called done."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import quantize, save_checkpoint
from quantface_arch.quant.checkpoint.check_saved import check_saved


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "w4a8", "w4a4"])
def test_what_was_saved_passes_and_what_was_changed_does_not(tmp_path, recipe):
    images = torch.rand(2, 3, 16, 16)
    net = build_arch(RRDB).half().float().eval()
    if recipe is not None:
        quantize(net, recipe, images, progress=False)
    path = tmp_path / "a.safetensors"
    save_checkpoint(net, path, RRDB)
    check_saved(net, path, build_arch, images)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["conv_last.bias"] = tensors["conv_last.bias"] + 0.01
    save_file(tensors, path, metadata)
    with pytest.raises(QuantFaceError, match=r"a\.safetensors: the loaded checkpoint computes"):
        check_saved(net, path, build_arch, images)


def test_a_file_that_cannot_be_loaded_is_refused(tmp_path):
    net = build_arch(RRDB).eval()
    save_checkpoint(net, tmp_path / "a.safetensors", {**RRDB, "num_feat": 8})
    with pytest.raises(QuantFaceError, match=r"a\.safetensors"):
        check_saved(net, tmp_path / "a.safetensors", build_arch, torch.rand(1, 3, 16, 16))
