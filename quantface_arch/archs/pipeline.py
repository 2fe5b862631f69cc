"""OSDFace without its networks: sizes, noise schedule, and what happens between the networks.

It stands apart because a runtime that has compiled the networks needs nothing else, and because
importing diffusers, which they are made of, takes seconds and 0.3 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError

__all__ = ["OSDFaceOutput", "Pipeline"]

# Of the noise schedule that Stable Diffusion was trained with.
TIMESTEPS = 1000
# Least and largest log-variance of a latent, those of diffusers' VAE.
LOGVAR = (-30.0, 20.0)


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


class Pipeline(nn.Module):
    """VRE → VAE encoder → UNet at one timestep → x₀ → VAE decoder, each of them still to be given.

    The methods that ``parts`` names come from a subclass, or are set on an instance.

    Args:
        preset, vre, vae, unet, patch_size, timestep, beta_start, beta_end: see ``OSDFace``.

    Raises:
        QuantFaceError: unknown preset.
    """

    # Of the images that ``forward`` takes.
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
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise QuantFaceError(f"network option preset: found {preset!r}, allowed are {known}")
        preset_sizes = PRESETS[preset]
        own = {"vre": vre, "vae": vae, "unet": unet}
        # Options of the three networks, by their names.
        self.sizes = {name: {**preset_sizes[name], **(own[name] or {})} for name in own}
        self.patch_size = preset_sizes["patch_size"] if patch_size is None else patch_size
        self.latent_spread = preset_sizes["latent_spread"]
        self.smooth_output = preset_sizes["smooth_output"]
        self.latent_scale = self.sizes["vae"]["scaling_factor"]
        self.timestep = timestep
        self.set_noise_schedule(beta_start, beta_end)

    def set_noise_schedule(self, beta_start: float, beta_end: float) -> None:
        """Fix √ᾱ and √(1−ᾱ) at the timestep from a scaled-linear schedule of 1000 steps."""
        # By numpy: torch would import sympy for it where a checkpoint's network is built.
        betas = np.linspace(beta_start**0.5, beta_end**0.5, TIMESTEPS) ** 2
        alpha_bar = float(np.cumprod(1 - betas)[self.timestep])
        self.sqrt_alpha, self.sqrt_one_minus_alpha = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    @property
    def stride(self) -> int:
        """Side of the square of pixels behind one latent position."""
        return self.patch_size * 2 ** (len(self.sizes["vae"]["block_out_channels"]) - 1)

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape of the latent, and of the noise that ``forward`` takes, for images in pixels."""
        channels = self.sizes["vae"]["latent_channels"]
        return batch, channels, height // self.stride, width // self.stride

    def encode_latent(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scaled latent of an image in [-1, 1] and the posterior's mean KL divergence.

        Args:
            image: float (N, 3, H, W).
            noise: standard normal, of ``latent_shape``, for a posterior sample; None: the mean.
        """
        mean, logvar = self.encode_moments(image).chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR)
        z = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return z * self.latent_scale, kl

    def predict_x0(self, z: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """``predict_noise``, and x₀ = (z − √(1−ᾱ)·ε)/√ᾱ, computed in float64."""
        eps = self.predict_noise(z, prompt)
        x0 = (z.double() - self.sqrt_one_minus_alpha * eps.double()) / self.sqrt_alpha
        return eps, x0.to(z.dtype)

    def forward_all(self, lq: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Run the whole pipeline and return every intermediate that a loss may look at."""
        prompt, vre_loss = self.encode_prompt(lq)
        z, kl = self.encode_latent(lq, noise)
        eps, x0 = self.predict_x0(z, prompt)
        return OSDFaceOutput(self.decode(x0), z, eps, x0, vre_loss, kl)

    def autoencode(self, image: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Encode and decode a clean image; prompt and UNet take no part."""
        z, kl = self.encode_latent(image, noise)
        return OSDFaceOutput(self.decode(z), z, torch.zeros_like(z), z, z.new_zeros(()), kl)

    def check_input(self, lq: Tensor, noise: Tensor | None) -> None:
        """Raise QuantFaceError for images or noise of a shape that the network cannot take."""
        if lq.ndim != 4 or lq.shape[1] != 3:
            raise QuantFaceError(f"images of shape {tuple(lq.shape)}: expected (N, 3, H, W)")
        step = self.stride * 2 ** (len(self.sizes["unet"]["block_out_channels"]) - 1)
        height, width = lq.shape[-2:]
        if height % step or width % step:
            raise QuantFaceError(
                f"image of {width}x{height} pixels: both sides must be multiples of {step}"
            )
        wanted = self.latent_shape(len(lq), height, width)
        if noise is not None and tuple(noise.shape) != wanted:
            raise QuantFaceError(f"noise of shape {tuple(noise.shape)}: expected {wanted}")

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
            return_all: return an ``OSDFaceOutput`` instead of the image.
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
