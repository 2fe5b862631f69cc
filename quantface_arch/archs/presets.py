"""The sizes of the restorers that share OSDFace's architecture.

``osdface`` is the published restorer: Stable Diffusion 2.1's VAE and UNet and a VQGAN-style
encoder. ``mini`` has the sizes of the first small restorer that this project trained, whose files
still load. Its VAE works on 2×2 patches of pixels (space to depth), so no convolution runs at
512×512. It keeps four times as many latent channels, because its decoder is too small to invent the
details that a latent omits. Tiny halves hold a latent between -3 and 3, and ``latent_spread`` is
the divisor that brings a scaled latent there.

``mini2`` has the sizes of the shipped models, the second generation. Its latent has twice as many
channels, which cost hardly any time, and ``smooth_output`` puts a fixed low-pass filter behind the
decoder. The last convolution writes the pixels of each 2×2 patch through separate channels, so
losses alone do not keep a pattern with a period of two pixels out of the image. The filter removes
exactly that frequency, and gradients through it cannot reward the pattern.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

_OSDFACE: dict[str, Any] = {
    "patch_size": 1,
    "smooth_output": False,
    "latent_spread": 1.0,
    "vre": {
        "resolution": 512,
        "channels": 64,
        "channel_mult": (1, 2, 2, 2, 4, 8),
        "num_res_blocks": 2,
        "attn_resolutions": (16,),
        "z_channels": 512,
        "num_codes": 1024,
        "num_tokens": 77,
        "prompt_dim": 1024,
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
}

_MINI: dict[str, Any] = {
    "patch_size": 2,
    "smooth_output": False,
    "latent_spread": 4.0,
    "vre": {
        "resolution": 128,
        "channels": 16,
        "channel_mult": (1, 2, 2, 4),
        "num_res_blocks": 1,
        "attn_resolutions": (16,),
        "z_channels": 64,
        "num_codes": 256,
        "num_tokens": 32,
        "prompt_dim": 128,
        "norm_num_groups": 8,
    },
    "vae": {
        "in_channels": 12,
        "out_channels": 12,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (48, 64, 96),
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 16,
        "mid_block_add_attention": False,
        "sample_size": 256,
        "scaling_factor": 1.0,
    },
    "unet": {
        "sample_size": 64,
        "in_channels": 16,
        "out_channels": 16,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "block_out_channels": (64, 96, 128),
        "layers_per_block": 1,
        "attention_head_dim": (2, 3, 4),
        "cross_attention_dim": 128,
        "use_linear_projection": True,
    },
}

_MINI2: dict[str, Any] = {
    **_MINI,
    "smooth_output": True,
    "vae": {**_MINI["vae"], "latent_channels": 32},
    "unet": {**_MINI["unet"], "in_channels": 32, "out_channels": 32},
}

PRESETS: dict[str, dict[str, Any]] = {"osdface": _OSDFACE, "mini": _MINI, "mini2": _MINI2}
