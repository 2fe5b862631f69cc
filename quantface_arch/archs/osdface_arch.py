"""OSDFace, the one-step diffusion face restorer, built from diffusers' parts and our VRE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from quantface_arch.archs.presets import PRESETS
from quantface_arch.archs.tiny import HALVES, tiny_half
from quantface_arch.archs.vre import VRE, EmbeddingChange
from quantface_arch.errors import QuantFaceError

__all__ = ["OSDFace", "OSDFaceOutput"]

# Log-variance of a latent that is known exactly, as a tiny encoder's is; diffusers' least one.
NO_VARIANCE = -30.0


class OSDFaceOutput(NamedTuple):
    """Everything that a loss may look at.

    image (N, 3, H, W), not clamped; latent z, eps and x0 (N, C, h, w); vre_loss scalar;
    kl scalar, the VAE posterior's mean divergence from a standard normal.
    """

    image: Tensor
    latent: Tensor
    eps: Tensor
    x0: Tensor
    vre_loss: Tensor
    kl: Tensor


class OSDFace(nn.Module):
    """VRE → VAE encoder → UNet at one timestep → x₀ → VAE decoder.

    Args:
        preset: ``osdface`` (Stable Diffusion 2.1 sizes) or ``mini``.
        vre, vae, unet: options that replace single entries of the preset's.
        patch_size: side of the pixel patches folded into channels before the VAE; None takes the
            preset's.
        timestep: the one step at which the UNet is evaluated.
        beta_start, beta_end: of the scaled-linear noise schedule with 1000 steps.
        initial_logvar: bias given to the posterior's log-variance when a model is made without
            weights, so that training from scratch does not begin in unit noise.
        fast_encoder, fast_decoder: options of ``tiny_half``, {} for TAESD's sizes, to have a tiny
            network in the place of the VAE's; None: the VAE's own.

    Raises:
        QuantFaceError: unknown preset, options that do not fit, or a picture whose sides the
            network cannot halve often enough.
    """

    # Widths that stay at 8 bits when a recipe asks for fewer: the first and the last convolution of
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
    # Of the pictures that ``forward`` takes.
    input_range = (-1.0, 1.0)
    # Functions of tensors alone, one after the other; a runtime compiles each by itself.
    parts = ("encode_prompt", "encode_moments", "predict_noise", "decode")

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
        super().__init__()
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise QuantFaceError(f"network option preset: found {preset!r}, allowed are {known}")
        sizes = PRESETS[preset]
        self.patch_size = sizes["patch_size"] if patch_size is None else patch_size
        self.latent_spread = sizes["latent_spread"]
        self.timestep = timestep
        self.vre = VRE(**{**sizes["vre"], **(vre or {})})
        z_channels = self.vre.quant_conv.out_channels
        self.embedding_change = EmbeddingChange(z_channels, self.vre.prompt_dim)
        self.vae = AutoencoderKL(**{**sizes["vae"], **(vae or {})})
        self.unet = UNet2DConditionModel(**{**sizes["unet"], **(unet or {})})
        # Kept outside the VAE, which is hidden from a compiler where a part calls nothing of it.
        self.latent_scale = self.vae.config.scaling_factor
        self.set_noise_schedule(beta_start, beta_end)
        latent_channels = self.vae.config.latent_channels
        nn.init.constant_(self.vae.quant_conv.bias[latent_channels:], initial_logvar)
        self.fast_encoder: nn.Module | None = None
        self.fast_decoder: nn.Module | None = None
        for half, options in zip(HALVES, (fast_encoder, fast_decoder), strict=True):
            if options is not None:
                self.use_tiny(half, options)

    def use_tiny(self, half: str, options: Mapping[str, Any]) -> None:
        """Have a tiny encoder or decoder, with random weights, instead of the VAE's.

        Args:
            half, options: see ``tiny_half``.
        """
        config = self.vae.config
        sizes = config.in_channels, config.latent_channels, len(config.block_out_channels)
        tiny = tiny_half(half, options, *sizes)
        setattr(self, f"fast_{half}", tiny.to(self.unet.device))
        for name in (half, {"encoder": "quant_conv", "decoder": "post_quant_conv"}[half]):
            setattr(self.vae, name, None)
        kept = [name for name in self.eight_bit_patterns if not name.startswith(f"vae.{half}.")]
        ends = (0, len(tiny.layers) - 1)
        self.eight_bit_patterns = (*kept, *(f"fast_{half}.layers.{place}" for place in ends))

    def set_noise_schedule(self, beta_start: float, beta_end: float) -> None:
        """Fix √ᾱ and √(1−ᾱ) at the timestep from a scaled-linear schedule of 1000 steps."""
        scheduler = DDPMScheduler(
            beta_start=beta_start, beta_end=beta_end, beta_schedule="scaled_linear"
        )
        alpha_bar = float(scheduler.alphas_cumprod[self.timestep].double())
        self.sqrt_alpha, self.sqrt_one_minus_alpha = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    @property
    def stride(self) -> int:
        """Side of the square of pixels behind one latent position."""
        return self.patch_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape of the latent, and of the noise that ``forward`` takes, for pictures in pixels."""
        channels = self.vae.config.latent_channels
        return batch, channels, height // self.stride, width // self.stride

    def input_sources(self) -> dict[str, tuple[int, ...]]:
        """Layers whose input is concatenated from several tensors, and the channels of each.

        Those are the first convolution and the shortcut of every residual block on the UNet's way
        up: (channels of what ran before, channels of the skip connection).
        """
        sources: dict[str, tuple[int, ...]] = {}
        hidden = self.unet.mid_block.resnets[-1].out_channels
        for i, block in enumerate(self.unet.up_blocks):
            for j, resnet in enumerate(block.resnets):
                for layer in ("conv1", "conv_shortcut"):
                    if getattr(resnet, layer) is not None:
                        name = f"unet.up_blocks.{i}.resnets.{j}.{layer}"
                        sources[name] = (hidden, resnet.in_channels - hidden)
                hidden = resnet.out_channels
        return sources

    def encode_prompt(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt embeddings (N, tokens, prompt_dim) and the VRE's codebook loss."""
        codes, vre_loss = self.vre(lq)
        return self.embedding_change(codes), vre_loss

    def encode_moments(self, image: Tensor) -> Tensor:
        """Mean and log-variance of a picture's latent, not scaled, one after the other."""
        patches = F.pixel_unshuffle(image, self.patch_size)
        if self.fast_encoder is None:
            return self.vae.encode(patches).latent_dist.parameters
        mean = self.fast_encoder(patches) * (self.latent_spread / self.latent_scale)
        return torch.cat((mean, torch.full_like(mean, NO_VARIANCE)), dim=1)

    def encode_latent(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scaled latent of a picture in [-1, 1] and the posterior's mean KL divergence.

        Args:
            image: float (N, 3, H, W).
            noise: standard normal, of ``latent_shape``, for a posterior sample; None: the mean.
        """
        posterior = DiagonalGaussianDistribution(self.encode_moments(image))
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return z * self.latent_scale, kl

    def predict_noise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """ε of the UNet at the timestep, of z's shape."""
        return self.unet(z, self.timestep, encoder_hidden_states=prompt).sample

    def constant_layers(self) -> dict[str, Tensor]:
        """Submodules that the timestep alone goes through, and what they give."""
        unet = self.unet
        time = unet.time_proj(torch.tensor([self.timestep])).to(unet.dtype)
        constants = {"unet.time_embedding": unet.time_embedding(time)}
        for name, module in self.named_modules():
            if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
                embedding = module.nonlinearity(constants["unet.time_embedding"])
                constants[f"{name}.time_emb_proj"] = module.time_emb_proj(embedding)
        return constants

    def predict_x0(self, z: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """``predict_noise``, and x₀ = (z − √(1−ᾱ)·ε)/√ᾱ, computed in float64."""
        eps = self.predict_noise(z, prompt)
        x0 = (z.double() - self.sqrt_one_minus_alpha * eps.double()) / self.sqrt_alpha
        return eps, x0.to(z.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Picture (N, 3, H, W) of a scaled latent, not clamped."""
        if self.fast_decoder is not None:
            tiny = self.fast_decoder(x0 / self.latent_spread)
            return F.pixel_shuffle(tiny, self.patch_size)
        image = self.vae.decode(x0 / self.latent_scale).sample
        return F.pixel_shuffle(image, self.patch_size)

    def forward_all(self, lq: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Run the whole pipeline and return every intermediate that a loss may look at."""
        prompt, vre_loss = self.encode_prompt(lq)
        z, kl = self.encode_latent(lq, noise)
        eps, x0 = self.predict_x0(z, prompt)
        return OSDFaceOutput(self.decode(x0), z, eps, x0, vre_loss, kl)

    def autoencode(self, image: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Encode and decode a clean picture; prompt and UNet take no part."""
        z, kl = self.encode_latent(image, noise)
        return OSDFaceOutput(self.decode(z), z, torch.zeros_like(z), z, z.new_zeros(()), kl)

    def check_input(self, lq: Tensor, noise: Tensor | None) -> None:
        """Raise QuantFaceError for pictures or noise of a shape that the network cannot take."""
        if lq.ndim != 4 or lq.shape[1] != 3:
            raise QuantFaceError(f"pictures of shape {tuple(lq.shape)}: (N, 3, H, W) is wanted")
        step = self.stride * 2 ** (len(self.unet.config.block_out_channels) - 1)
        height, width = lq.shape[-2:]
        if height % step or width % step:
            raise QuantFaceError(
                f"picture of {width}x{height} pixels: both sides must be multiples of {step}"
            )
        wanted = self.latent_shape(len(lq), height, width)
        if noise is not None and tuple(noise.shape) != wanted:
            raise QuantFaceError(f"noise of shape {tuple(noise.shape)}: {wanted} is wanted")

    def forward(
        self,
        lq: Tensor,
        noise: Tensor | None = None,
        return_all: bool = False,
        autoencode: bool = False,
    ) -> Tensor | OSDFaceOutput:
        """Restore degraded faces.

        Args:
            lq: float (N, 3, H, W) in [-1, 1].
            noise: see ``encode_latent``.
            return_all: return an ``OSDFaceOutput`` instead of the picture.
            autoencode: only encode and decode, see ``autoencode``. A switch of ``forward`` because
                distributed training synchronizes gradients of nothing else.

        Returns:
            restored faces (N, 3, H, W), clamped to [-1, 1] in evaluation mode.

        Raises:
            QuantFaceError: see ``check_input``.
        """
        self.check_input(lq, noise)
        output = (self.autoencode if autoencode else self.forward_all)(lq, noise)
        if return_all:
            return output
        return output.image if self.training else output.image.clamp(-1, 1)
