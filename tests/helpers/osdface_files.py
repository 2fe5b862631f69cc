"""Fabricated copies of OSDFace's files: the real names, keys and formats, random values."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from quantface_arch.archs.presets import PRESETS
from quantface_arch.pretrained.osdface_folder import load_osdface_folder

BASE = "stable-diffusion-2-1-base"
RANK = 4

# The osdface preset with every block in its place, small enough to run in a blink.
TINY: dict[str, Any] = {
    "vre": {
        "resolution": 32,
        "channels": 8,
        "channel_mult": (1, 1, 2),
        "attn_resolutions": (8,),
        "z_channels": 16,
        "num_codes": 24,
        "num_tokens": 5,
        "prompt_dim": 16,
        "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "unet": {
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "attention_head_dim": (1, 1, 2, 2),
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
    },
}

SIZES = {part: {**PRESETS["osdface"][part], **TINY[part]} for part in TINY}
LORA = "pytorch_lora_weights.safetensors"
CKPT = "associate_2.ckpt"

# Linear layers and convolutions of every kernel and stride that a UNet has.
LORA_LAYERS = (
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.resnets.0.conv_shortcut",
    "mid_block.resnets.1.conv2",
)
OLDEST_LAYERS = tuple(
    f"down_blocks.0.attentions.0.transformer_blocks.0.attn{i}.to_{name}"
    for i in (1, 2)
    for name in ("q", "k", "v", "out.0")
)


def encoder_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of an association checkpoint's encoder."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name: str, cin: int, cout: int) -> None:
        layer(f"{name}.norm1", cin)
        layer(f"{name}.conv1", cout, cin, 3, 3)
        layer(f"{name}.norm2", cout)
        layer(f"{name}.conv2", cout, cout, 3, 3)
        if cin != cout:
            layer(f"{name}.nin_shortcut", cout, cin, 1, 1)

    def attention(name: str, width: int) -> None:
        for part in ("norm1", "norm2"):
            layer(f"{name}.{part}", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    width = sizes["channels"]
    layer("conv_in", width, 3, 3, 3)
    for level, mult in enumerate(sizes["channel_mult"]):
        for index in range(sizes["num_res_blocks"]):
            block(f"down.{level}.block.{index}", width, width := sizes["channels"] * mult)
            if sizes["resolution"] >> level in sizes["attn_resolutions"]:
                attention(f"down.{level}.attn.{index}", width)
        if level < len(sizes["channel_mult"]) - 1:
            layer(f"down.{level}.downsample.conv", width, width, 3, 3)
    block("mid.block_1", width, width)
    attention("mid.attn_1", width)
    block("mid.block_2", width, width)
    layer("norm_out", width)
    layer("conv_out", sizes["z_channels"], width, 3, 3)
    return shapes


def vqgan_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return one VQGAN of the association checkpoint; the decoder is only hinted at."""
    z = sizes["z_channels"]
    shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(sizes).items()}
    for name in ("quant_conv", "post_quant_conv"):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (z, z, 1, 1), (z,)
    shapes["quantize.embedding.weight"] = (sizes["num_codes"], z)
    shapes["decoder.conv_in.weight"], shapes["decoder.conv_in.bias"] = (8, z, 3, 3), (8,)
    return shapes


def association(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return what ``associate_2.ckpt`` holds: two VQGANs, two losses, a trainer's leftovers."""
    state = OrderedDict()
    for name in ("vqvae", "vqvae_LQ"):
        for key, shape in vqgan_shapes(sizes).items():
            state[f"{name}.{key}"] = torch.randn(shape)
    state["loss.discriminator.main.0.weight"] = torch.randn(4, 3, 4, 4)
    state["loss_LQ.discriminator.main.0.weight"] = torch.randn(4, 3, 4, 4)
    state["logit_scale"] = torch.tensor(2.66)
    return {"epoch": 3, "global_step": 100, "state_dict": state, "optimizer_states": [{"lr": 1e-4}]}


def embedding_change(sizes: dict[str, Any]) -> dict[str, Tensor]:
    """Return what ``embedding_change_weights.pth`` holds."""
    z, prompt = sizes["z_channels"], sizes["prompt_dim"]
    return {
        "conv1.weight": torch.randn(z // 2, z, 1),
        "conv1.bias": torch.randn(z // 2),
        "conv2.weight": torch.randn(prompt, z // 2, 1),
        "conv2.bias": torch.randn(prompt),
    }


def lora_factors(unet: UNet2DConditionModel, layers=LORA_LAYERS, rank=RANK):
    """Return random factors (A, B) by layer: for a k×k convolution A is k×k and B is 1×1."""
    factors = {}
    for name in layers:
        rows, *columns = unet.get_submodule(name).weight.shape
        ones = [1] * (len(columns) - 1)
        factors[name] = torch.randn(rank, *columns), torch.randn(rows, rank, *ones)
    return factors


def lora_tensors(factors, style: str) -> dict[str, Tensor]:
    """Return factors under the keys of a style: peft, older or oldest."""
    tensors = {}
    for name, (a, b) in factors.items():
        if style == "peft":
            keys = f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight"
        elif style == "older":
            keys = f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight"
        else:
            attention, _, part = name.removesuffix(".0").rpartition(".")
            key = f"unet.{attention}.processor.{part}_lora"
            keys = f"{key}.down.weight", f"{key}.up.weight"
        tensors[keys[0]], tensors[keys[1]] = a, b
    return tensors


def write_base(folder: Path, sizes: dict[str, Any], **save: Any) -> UNet2DConditionModel:
    """Write a base model in diffusers' layout; ``save`` goes to ``save_pretrained``."""
    unet = UNet2DConditionModel(**sizes["unet"])
    unet.save_pretrained(folder / "unet", **save)
    AutoencoderKL(**sizes["vae"]).save_pretrained(folder / "vae", **save)
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return unet


def write_osdface(folder: Path, sizes: dict[str, Any], style="peft") -> dict[str, Any]:
    """Write all files; return what is in them."""
    unet = write_base(folder / BASE, sizes)
    factors = lora_factors(unet, OLDEST_LAYERS if style == "oldest" else LORA_LAYERS)
    found = {
        "association": association(sizes["vre"]),
        "embedding_change": embedding_change(sizes["vre"]),
        "unet": {key: value.clone() for key, value in unet.state_dict().items()},
        "factors": factors,
    }
    torch.save(found["association"], folder / "associate_2.ckpt")
    torch.save(found["embedding_change"], folder / "embedding_change_weights.pth")
    save_file(lora_tensors(factors, style), folder / "pytorch_lora_weights.safetensors")
    return found


def load(folder, **options):
    """Load the files of a folder, written in the tiny sizes."""
    return load_osdface_folder(folder, overrides=TINY, **options)
