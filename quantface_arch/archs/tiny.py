"""Small encoders and decoders in TAESD's layout that replace the VAE's, which do most of the work.

A tiny autoencoder (diffusers' ``AutoencoderTiny``) is distilled from a VAE and shares its scaled
latent. Either half may therefore replace the VAE's. Each half has a number of blocks and a number
of channels per resolution. The decoder's are listed from the latent to the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from quantface_arch.errors import QuantFaceError, check_keys

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny

__all__ = ["HALVES", "tiny_half"]

HALVES = ("encoder", "decoder")
# These are diffusers' names for the sizes of a half, with TAESD's values.
_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "encoder": {"num_blocks": (1, 3, 3, 3), "block_out_channels": (64, 64, 64, 64)},
    "decoder": {"num_blocks": (3, 3, 3, 1), "block_out_channels": (64, 64, 64, 64)},
}


def tiny_half(
    half: str, options: Mapping[str, Any], channels: int, latent_channels: int, resolutions: int
) -> EncoderTiny | DecoderTiny:
    """Build the encoder or the decoder of a tiny autoencoder with random weights.

    Args:
        half: ``encoder`` maps images in [-1, 1] to scaled latents; ``decoder`` maps them back.
        options: ``num_blocks`` and ``block_out_channels``, each with one number per resolution.
            The defaults are TAESD's.
        channels: the number of image channels, after patches are folded into channels.
        latent_channels: the number of channels of the latent.
        resolutions: the number of resolutions in the VAE, including the image's own.

    Raises:
        QuantFaceError: an option is unknown, or the number of resolutions differs.
    """
    check_keys(f"network option fast_{half}", options, _SIZES[half])
    sizes = {key: tuple(options.get(key, value)) for key, value in _SIZES[half].items()}
    for key, found in sizes.items():
        if len(found) != resolutions:
            raise QuantFaceError(
                f"network option fast_{half}: {key}: found {list(found)}, "
                f"expected one number for each of the VAE's {resolutions} resolutions"
            )
    ours: dict[str, Any] = {
        f"num_{half}_blocks": sizes["num_blocks"],
        f"{half}_block_out_channels": sizes["block_out_channels"],
    }
    whole = AutoencoderTiny(
        in_channels=channels, out_channels=channels, latent_channels=latent_channels, **ours
    )
    return getattr(whole, half)
