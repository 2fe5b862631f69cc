"""Every mistake in OSDFace's files is named, with the file and the key."""

from __future__ import annotations

import json

import osdface_files as files
import pytest
import torch
from osdface_files import CKPT, LORA, SIZES, load
from safetensors.torch import load_file, save_file

from quantface_arch.errors import QuantFaceError


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        CKPT,
        "embedding_change_weights.pth",
        LORA,
        f"{files.BASE}/scheduler/scheduler_config.json",
        f"{files.BASE}/unet/config.json",
        f"{files.BASE}/vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_missing_and_damaged_files_are_named(folder, name):
    part = name.split("/")[-2] if "/" in name else name
    whole = (folder / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense", None):
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(QuantFaceError, match=part) as caught:
            load(folder)
        assert "\n" not in str(caught.value) and "convert_pickle" not in str(caught.value)


def change(path, edit):
    state = torch.load(path, weights_only=True)
    edit(state.get("state_dict", state))
    torch.save(state, path)


@pytest.mark.parametrize(
    "name, edit, message",
    [
        (
            CKPT,
            lambda s: s.pop("vqvae_LQ.encoder.mid.attn_1.q.bias"),
            "missing: encoder.mid.attn_1",
        ),
        (CKPT, lambda s: s.update({"vqvae_LQ.extra": torch.ones(1)}), "unexpected: extra"),
        (
            CKPT,
            lambda s: s.update({"vqvae_LQ.encoder.down.0.block.0.norm3.bias": torch.ones(1)}),
            "unexpected: encoder.down.0.block.0.norm3.bias",
        ),
        (
            CKPT,
            lambda s: s.update({"vqvae_LQ.quantize.embedding.weight": torch.ones(3, 16)}),
            r"another shape: quantize.embedding.weight \(found \(3, 16\), expected \(24, 16\)\)",
        ),
        (CKPT, lambda s: s.clear(), "no key begins with vqvae_LQ"),
        ("embedding_change_weights.pth", lambda s: s.pop("conv2.bias"), "missing: conv2.bias"),
        (
            "embedding_change_weights.pth",
            lambda s: s.update({"conv3.bias": torch.ones(1)}),
            "unexpected: conv3.bias",
        ),
    ],
)
def test_wrong_keys_of_checkpoints_are_named(folder, name, edit, message):
    change(folder / name, edit)
    with pytest.raises(QuantFaceError, match=f"{name}: .*{message}"):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, shape, message",
    [
        ("unet.nowhere.lora_A.weight", (4, 16), r"unet.nowhere.lora_A.weight \(4, 16\)"),
        ("unet.conv_norm_out.lora_A.weight", (4, 16), "unet.conv_norm_out.lora_A.weight"),
        ("unet.mid_block.resnets.0.conv1.lora_A.weight", (4, 32, 3, 3), "conv1.lora_A.weight"),
        ("unet.conv_in.lora_A.weight", (4, 4, 1, 1), "unet.conv_in.lora_A.weight.*lora_B"),
        ("unet.conv_in.alpha", (), "unet.conv_in.alpha"),
        ("unet.conv_in.lora.down.weight", (4, 4, 3, 3), "two styles"),
        ("text_encoder.q_proj.lora_A.weight", (4, 4), "not belong to a UNet: text_encoder.q_proj"),
    ],
)
def test_lora_keys_that_fit_nothing_are_named(folder, key, shape, message):
    save_file({**load_file(folder / LORA), key: torch.zeros(shape)}, folder / LORA)
    with pytest.raises(QuantFaceError, match=f"{LORA}: .*{message}"):
        load(folder)


def test_lora_of_another_kind_is_refused(folder):
    header = {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})}
    save_file(load_file(folder / LORA), folder / LORA, metadata=header)
    with pytest.raises(QuantFaceError, match="use_rslora"):
        load(folder)


@pytest.mark.parametrize(
    "part, sizes, message",
    [
        ("unet", {"block_out_channels": (16, 16, 32, 64)}, "config.json: block_out_channels"),
        ("unet", {"flip_sin_to_cos": False}, "config.json: flip_sin_to_cos: found False"),
        ("vae", {"scaling_factor": 0.13}, "config.json: scaling_factor: found 0.13"),
    ],
)
def test_base_model_of_other_sizes_is_refused(folder, tmp_path, part, sizes, message):
    base = tmp_path / "other"
    files.write_base(base, {**SIZES, part: {**SIZES[part], **sizes}})
    with pytest.raises(QuantFaceError, match=f"{part}/{message}"):
        load(folder, base=base)


def test_incomplete_base_model_is_refused(folder):
    path = folder / files.BASE / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("conv_in.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(QuantFaceError, match=r"unet.*conv_in\.weight"):
        load(folder)
    tensors["conv_in.weight"], tensors["stray"] = torch.zeros(16, 4, 3, 3), torch.zeros(1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(QuantFaceError, match="unet: unexpected keys: stray"):
        load(folder)
