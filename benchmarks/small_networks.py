"""Define networks that run in milliseconds: a tiny OSDFace, and one of BasicSR's networks."""

from __future__ import annotations

__all__ = ["RRDB", "TINY"]

TINY = {
    "type": "OSDFace",
    "preset": "mini",
    "vre": {
        "resolution": 32,
        "channels": 8,
        "channel_mult": [1, 2],
        "z_channels": 16,
        "num_codes": 16,
        "num_tokens": 4,
        "prompt_dim": 32,
    },
    "vae": {"block_out_channels": [16, 16, 16], "latent_channels": 4},
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 32, 32],
        "attention_head_dim": [1, 1, 1],
        "cross_attention_dim": 32,
    },
}

RRDB = {
    "type": "RRDBNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "scale": 2,
    "num_feat": 16,
    "num_block": 1,
    "num_grow_ch": 8,
}
