"""OSDFace, the one-step diffusion face restorer, built from diffusers' networks and the VRE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from quantface_arch.archs.pipeline import Pipeline
from quantface_arch.archs.pipeline_config import LOGVAR
from quantface_arch.archs.tiny import HALVES, tiny_half
from quantface_arch.archs.vre import VRE, EmbeddingChange

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

__all__ = ["OSDFace"]


class OSDFace(Pipeline):
    """The pipeline with its networks.

    Args:
        preset: ``osdface`` (the sizes of Stable Diffusion 2.1), ``mini`` or ``mini2``.
        vre, vae, unet: options that replace single entries of the preset.
        patch_size: the side of the pixel patches that are folded into channels before the VAE. None
            takes the preset's.
        timestep: the timestep at which the UNet is evaluated.
        beta_start, beta_end: the ends of the scaled-linear noise schedule with 1000 steps.
        initial_logvar: the initial bias of the posterior's log-variance. A low value avoids unit
            noise in the latent at the start of a training from scratch.
        fast_encoder, fast_decoder: options of ``tiny_half`` for a tiny network that replaces half
            of the VAE. {} takes TAESD's sizes, None keeps the VAE's own half.

    Raises:
        QuantFaceError: the preset is unknown, options do not fit, or the network cannot halve the
            sides of an image often enough.
    """

    # These layers keep 8 bits when a recipe asks for fewer: the first and the last convolution of
    # each network, the time embedding, and the whole VRE.
    eight_bit_patterns = (
        "vae.encoder.conv_in",
        "vae.encoder.conv_out",
        "vae.decoder.conv_in",
        "vae.decoder.conv_out",
        "unet.conv_in",
        "unet.conv_out",
        "unet.time_embedding.*",
        "vre.*",
        "embedding_change.*",
    )

    def __init__(
        self,
        preset: str = "osdface",
        vre: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        unet: Mapping[str, Any] | None = None,
        patch_size: int | None = None,
        timestep: int = 399,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        initial_logvar: float = -6.0,
        fast_encoder: Mapping[str, Any] | None = None,
        fast_decoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(preset, vre, vae, unet, patch_size, timestep, beta_start, beta_end)
        self.vre = VRE(**self.sizes["vre"])
        z_channels = self.vre.quant_conv.out_channels
        self.embedding_change = EmbeddingChange(z_channels, self.vre.prompt_dim)
        self.vae = AutoencoderKL(**self.sizes["vae"])
        self.unet = UNet2DConditionModel(**self.sizes["unet"])
        moments_bias = self.vae.get_parameter("quant_conv.bias")
        nn.init.constant_(moments_bias[self.vae.config["latent_channels"] :], initial_logvar)
        self.fast_encoder: nn.Module | None = None
        self.fast_decoder: nn.Module | None = None
        for half, options in zip(HALVES, (fast_encoder, fast_decoder), strict=True):
            if options is not None:
                self.use_tiny(half, options)

    def use_tiny(self, half: str, options: Mapping[str, Any]) -> None:
        """Replace the VAE's encoder or decoder by a tiny one with random weights.

        Args:
            half, options: see ``tiny_half``.
        """
        config = self.vae.config
        resolutions = len(config["block_out_channels"])
        tiny = tiny_half(
            half, options, config["in_channels"], config["latent_channels"], resolutions
        )
        setattr(self, f"fast_{half}", tiny.to(self.unet.device))
        for name in (half, {"encoder": "quant_conv", "decoder": "post_quant_conv"}[half]):
            setattr(self.vae, name, None)
        kept = [name for name in self.eight_bit_patterns if not name.startswith(f"vae.{half}.")]
        ends = (0, len(tiny.layers) - 1)
        self.eight_bit_patterns = (*kept, *(f"fast_{half}.layers.{place}" for place in ends))

    def input_sources(self) -> dict[str, tuple[int, ...]]:
        """Return the layers whose input is concatenated, with the channels of each source.

        These are the first convolution and the shortcut of every residual block in the UNet's
        decoder. The sources are the previous block and the skip connection.
        """
        sources: dict[str, tuple[int, ...]] = {}
        hidden = _resnets(self.unet.mid_block)[-1].out_channels
        for i, block in enumerate(self.unet.up_blocks):
            for j, resnet in enumerate(_resnets(block)):
                for layer in ("conv1", "conv_shortcut"):
                    if getattr(resnet, layer) is not None:
                        name = f"unet.up_blocks.{i}.resnets.{j}.{layer}"
                        sources[name] = (hidden, resnet.in_channels - hidden)
                hidden = resnet.out_channels
        return sources

    def encode_prompt(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompt embeddings (N, tokens, prompt_dim) and the VRE's codebook loss."""
        codes, vre_loss = self.vre(lq)
        return self.embedding_change(codes), vre_loss

    def encode_moments(self, image: Tensor) -> Tensor:
        """Return mean and log-variance of an image's unscaled latent, concatenated by channel."""
        patches = F.pixel_unshuffle(image, self.patch_size)
        if self.fast_encoder is None:
            encoded = cast("AutoencoderKLOutput", self.vae.encode(patches))
            return encoded.latent_dist.parameters
        # A tiny encoder returns the latent itself, and its variance is negligible.
        mean = self.fast_encoder(patches) * (self.latent_spread / self.latent_scale)
        return torch.cat((mean, torch.full_like(mean, LOGVAR[0])), dim=1)

    def predict_noise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """Return the noise ε that the UNet predicts at the timestep, in z's shape."""
        return self.unet(z, self.timestep, encoder_hidden_states=prompt).sample

    def constant_layers(self) -> dict[str, Tensor]:
        """Return the outputs of the submodules that depend on the timestep alone."""
        unet = self.unet
        time = unet.time_proj(torch.tensor([self.timestep])).to(unet.dtype)
        constants = {"unet.time_embedding": unet.time_embedding(time)}
        for name, module in self.named_modules():
            if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
                embedding = module.nonlinearity(constants["unet.time_embedding"])
                constants[f"{name}.time_emb_proj"] = module.time_emb_proj(embedding)
        return constants

    def decode(self, x0: Tensor) -> Tensor:
        """Decode a scaled latent into an image (N, 3, H, W), not clamped."""
        if self.fast_decoder is not None:
            patches = self.fast_decoder(x0 / self.latent_spread)
        else:
            decoded = cast("DecoderOutput", self.vae.decode(x0 / self.latent_scale))
            patches = decoded.sample
        image = F.pixel_shuffle(patches, self.patch_size)
        return smooth(image) if self.smooth_output else image


def _resnets(block: nn.Module) -> Sequence[ResnetBlock2D]:
    """Return the residual blocks of a block of the UNet."""
    return cast("Sequence[ResnetBlock2D]", block.resnets)


def smooth(image: Tensor) -> Tensor:
    """Filter an image (N, 3, H, W) by the binomial kernel [1, 2, 1] / 4 along both axes.

    The kernel removes a pattern with a period of two pixels. Border pixels are replicated.
    """
    kernel = image.new_tensor([0.25, 0.5, 0.25])
    # The number of channels is a constant, because ONNX has to know the kernel's shape.
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, groups=3)
