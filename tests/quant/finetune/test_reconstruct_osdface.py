"""Block-wise reconstruction of diffusers' blocks: nested inputs, keywords, tuples as outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import CalibrationData, prepare
from quantface_arch.quant.finetune.reconstruct import reconstruct

RECIPE = {
    "name": "w3a4",
    "balance": {"kind": "none"},
    "branch": {"svd": 0, "distill": 4, "budget": 1},
}


@pytest.mark.slow
def test_blocks_of_unet_and_vae_come_nearer_to_the_teacher():
    teacher = build_arch(TINY).eval()
    student = copy.deepcopy(teacher)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    prepare(student, RECIPE, CalibrationData(images, progress=False))
    with torch.no_grad():
        wanted, before = teacher(images), student(images)
    blocks = ["unet.*_blocks.*", "unet.mid_block", "vae.*.resnets.?"]
    errors = reconstruct(
        student, teacher, images, blocks, steps=8, lr=1e-2, batch_size=1, progress=False
    )
    names = list(errors)
    assert names[0] == "vae.encoder.down_blocks.0.resnets.0"
    assert names.index("unet.down_blocks.2") < names.index("unet.mid_block")
    assert names[-1].startswith("vae.decoder.up_blocks.2")
    # The outermost match is the block: nothing inside a UNet block is one of its own.
    assert not any("resnets" in name for name in names if name.startswith("unet"))
    assert all(after <= before for before, after in errors.values())
    assert sum(after < 0.95 * before for before, after in errors.values()) > len(errors) / 2
    with torch.no_grad():
        after = student(images)
    assert (after - wanted).square().mean() < 0.8 * (before - wanted).square().mean()
