"""Quantized UNets and VAEs in diffusers' own pipelines, folders and loaders."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

from quantface_arch.diffusers import quantize_model
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.quant import quant_layers

SMALL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
}
SD = {
    **SMALL,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SDXL = {
    **SD,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "use_linear_projection": True,
}
VAE = {
    **SMALL,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
# The parts of a pipeline that these tests have no weights for.
NO_TEXT = {
    **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
    "requires_safety_checker": False,
}
# How a pipeline calls SDXL's UNet, besides its text.
ADDED = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 32), "time_ids": torch.zeros(1, 6)}}


def latents(seed):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def text(seed):
    return torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(seed))


def calls(added):
    return [
        ((latents(seed), 500), {"encoder_hidden_states": text(seed), **added}) for seed in range(2)
    ]


@pytest.fixture(params=["sd", "sdxl", "vae"])
def quantized(request):
    """A quantized network and a function that runs such a network."""
    torch.manual_seed(0)
    if request.param == "vae":
        net, images = AutoencoderKL(**VAE).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
        quantize_model(net, "w4a8", images, progress=False)
        return net, lambda it: it(images[:1]).sample
    options, added = (SD, {}) if request.param == "sd" else (SDXL, ADDED)
    net = UNet2DConditionModel(**options).eval()
    quantize_model(net, "w4a4", calls(added), progress=False)
    return net, lambda it: it(latents(5), 500, encoder_hidden_states=text(5), **added).sample


@pytest.mark.slow
@torch.no_grad()
def test_a_saved_model_is_the_same_when_it_is_loaded(quantized, tmp_path):
    net, run = quantized
    net.save_pretrained(tmp_path / "once")
    config = json.loads((tmp_path / "once/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "quantface"
    loaded = type(net).from_pretrained(tmp_path / "once")
    assert len(list(quant_layers(loaded))) == len(list(quant_layers(net))) > 10
    assert torch.equal(run(loaded), run(net))
    loaded.save_pretrained(tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    once, again = (load_file(tmp_path / place / name) for place in ("once", "again"))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert (tmp_path / "once" / name).stat().st_size < 0.4 * 4 * sum(
        parameter.numel() for parameter in net.parameters()
    )


@pytest.mark.slow
@torch.no_grad()
def test_a_pipeline_keeps_a_quantized_unet(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD).eval()
    quantize_model(unet, "w8a8", calls({}), progress=False)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE).eval(),
        unet=unet,
        scheduler=DDIMScheduler(),
        **NO_TEXT,
    )
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, **NO_TEXT)
    assert any(quant_layers(loaded.unet)) and not any(quant_layers(loaded.vae))
    images = [
        it(
            prompt_embeds=text(1),
            negative_prompt_embeds=text(2),
            num_inference_steps=2,
            height=16,
            width=16,
            latents=latents(3),
            output_type="np",
        ).images
        for it in (pipeline, loaded)
    ]
    assert (images[0] == images[1]).all()


@pytest.mark.slow
def test_what_cannot_be_kept_is_refused(tmp_path):
    net = UNet2DConditionModel(**SD).eval()
    quantize_model(net, "w8a8", calls({}), progress=False)
    with pytest.raises(QuantFaceError, match="safe_serialization"):
        net.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    net.save_pretrained(tmp_path / "good")
    with pytest.raises(UsageError, match=r"torch_dtype: found torch\.float16"):
        UNet2DConditionModel.from_pretrained(tmp_path / "good", torch_dtype=torch.float16)
    file = tmp_path / "good/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(Exception, match=r"safetensors|incomplete|SafetensorError"):
        UNet2DConditionModel.from_pretrained(tmp_path / "good")
