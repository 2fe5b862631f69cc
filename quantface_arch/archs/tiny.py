"""Small encoders and decoders in place of the VAE's, which is most of the work: TAESD's layout.

A tiny autoencoder (diffusers' ``AutoencoderTiny``) is distilled from a VAE and shares its scaled
latent, so either half may stand in for the VAE's. Each half has a number of blocks and of channels
per resolution; the decoder's go from the latent to the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderTiny
from torch import nn

from quantface_arch.errors import QuantFaceError, check_keys

__all__ = ["HALVES", "tiny_half"]

HALVES = ("encoder", "decoder")
# What diffusers calls a half's sizes, and those of TAESD.
_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "encoder": {"num_blocks": (1, 3, 3, 3), "block_out_channels": (64, 64, 64, 64)},
    "decoder": {"num_blocks": (3, 3, 3, 1), "block_out_channels": (64, 64, 64, 64)},
}


def tiny_half(
    half: str, options: Mapping[str, Any], channels: int, latent_channels: int, resolutions: int
) -> nn.Module:
    """Half a tiny autoencoder, with random weights.

    Args:
        half: ``encoder``, images in [-1, 1] to scaled latents, or ``decoder``, the way back.
        options: ``num_blocks`` and ``block_out_channels``, a number per resolution; TAESD's are the
            defaults.
        channels: of the image, once its patches are folded.
        latent_channels: of the latent.
        resolutions: of the VAE, the image's among them.

    Raises:
        QuantFaceError: another option, or another number of resolutions.
    """
    check_keys(f"network option fast_{half}", options, _SIZES[half])
    sizes = {key: tuple(options.get(key, value)) for key, value in _SIZES[half].items()}
    for key, found in sizes.items():
        if len(found) != resolutions:
            raise QuantFaceError(
                f"network option fast_{half}: {key}: found {list(found)}, "
                f"expected one number for each of the VAE's {resolutions} resolutions"
            )
    ours = {
        f"num_{half}_blocks": sizes["num_blocks"],
        f"{half}_block_out_channels": sizes["block_out_channels"],
    }
    whole = AutoencoderTiny(
        in_channels=channels, out_channels=channels, latent_channels=latent_channels, **ours
    )
    return getattr(whole, half)
