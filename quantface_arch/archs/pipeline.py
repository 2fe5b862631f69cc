"""OSDFace without its networks: sizes, noise schedule, and the computations between the networks.

A runtime that has compiled the networks needs only this module. It avoids the import of diffusers,
which takes seconds and 0.3 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError

__all__ = ["OSDFaceOutput", "Pipeline"]

# Stable Diffusion was trained with a noise schedule of this length.
TIMESTEPS = 1000
# diffusers' VAE clamps a latent's log-variance to these bounds.
LOGVAR = (-30.0, 20.0)


class OSDFaceOutput(NamedTuple):
    """Every output and intermediate that a loss may use.

    Attributes:
        image: (N, 3, H, W), not clamped.
        latent, eps, x0: z, the predicted noise and x₀, (N, C, h, w).
        vre_loss: the codebook loss, a scalar.
        kl: the mean divergence of the VAE's posterior from a standard normal, a scalar.
    """

    image: Tensor
    latent: Tensor
    eps: Tensor
    x0: Tensor
    vre_loss: Tensor
    kl: Tensor


class Pipeline(nn.Module):
    """The pipeline VRE → VAE encoder → UNet at one timestep → x₀ → VAE decoder, without networks.

    A subclass defines the methods that ``parts`` names, or they are set on an instance.

    Args:
        preset, vre, vae, unet, patch_size, timestep, beta_start, beta_end: see ``OSDFace``.

    Raises:
        QuantFaceError: the preset is unknown.
    """

    # See ``NetworkTraits`` for ``input_range``, ``parts`` and ``side_step``.
    input_range = (-1.0, 1.0)
    parts = ("encode_prompt", "encode_moments", "predict_noise", "decode")
    encode_prompt: Callable[[Tensor], tuple[Tensor, Tensor]]
    encode_moments: Callable[[Tensor], Tensor]
    predict_noise: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

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
        # This holds the options of the three networks by name.
        self.sizes = {name: {**preset_sizes[name], **(own[name] or {})} for name in own}
        self.patch_size = preset_sizes["patch_size"] if patch_size is None else patch_size
        self.latent_spread = preset_sizes["latent_spread"]
        self.smooth_output = preset_sizes["smooth_output"]
        self.latent_scale = self.sizes["vae"]["scaling_factor"]
        self.timestep = timestep
        self.set_noise_schedule(beta_start, beta_end)

    def set_noise_schedule(self, beta_start: float, beta_end: float) -> None:
        """Set √ᾱ and √(1−ᾱ) at the timestep, from a scaled-linear schedule of 1000 steps."""
        # numpy computes this, since torch would import sympy for it when a checkpoint is loaded.
        betas = np.linspace(beta_start**0.5, beta_end**0.5, TIMESTEPS) ** 2
        alpha_bar = float(np.cumprod(1 - betas)[self.timestep])
        self.sqrt_alpha, self.sqrt_one_minus_alpha = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    @property
    def stride(self) -> int:
        """Return the side in pixels of the square that one latent position covers."""
        return self.patch_size * 2 ** (len(self.sizes["vae"]["block_out_channels"]) - 1)

    @property
    def side_step(self) -> int:
        """Return the number that must divide both sides of an image in pixels."""
        return self.stride * 2 ** (len(self.sizes["unet"]["block_out_channels"]) - 1)

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape of the latent, and of the noise, for images of a size in pixels."""
        channels = self.sizes["vae"]["latent_channels"]
        return batch, channels, height // self.stride, width // self.stride

    def encode_latent(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scaled latent of an image in [-1, 1] and the posterior's mean KL divergence.

        Args:
            image: float (N, 3, H, W).
            noise: standard normal noise of ``latent_shape``, for a sample of the posterior. None
                takes its mean.
        """
        mean, logvar = self.encode_moments(image).chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR)
        z = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return z * self.latent_scale, kl

    def predict_x0(self, z: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``predict_noise`` and x₀ = (z − √(1−ᾱ)·ε)/√ᾱ, computed in float64."""
        eps = self.predict_noise(z, prompt)
        x0 = (z.double() - self.sqrt_one_minus_alpha * eps.double()) / self.sqrt_alpha
        return eps, x0.to(z.dtype)

    def forward_all(self, lq: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Run the whole pipeline and return every intermediate that a loss may use."""
        prompt, vre_loss = self.encode_prompt(lq)
        z, kl = self.encode_latent(lq, noise)
        eps, x0 = self.predict_x0(z, prompt)
        return OSDFaceOutput(self.decode(x0), z, eps, x0, vre_loss, kl)

    def autoencode(self, image: Tensor, noise: Tensor | None = None) -> OSDFaceOutput:
        """Encode and decode a clean image, without prompt and UNet."""
        z, kl = self.encode_latent(image, noise)
        return OSDFaceOutput(self.decode(z), z, torch.zeros_like(z), z, z.new_zeros(()), kl)

    def check_input(self, lq: Tensor, noise: Tensor | None) -> None:
        """Raise QuantFaceError for images or noise of a shape that the network cannot take."""
        if lq.ndim != 4 or lq.shape[1] != 3:
            raise QuantFaceError(f"images of shape {tuple(lq.shape)}: expected (N, 3, H, W)")
        step = self.side_step
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
            autoencode: only encode and decode, see ``autoencode``. This is an argument of
                ``forward`` because distributed training synchronizes the gradients of ``forward``
                alone.

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
