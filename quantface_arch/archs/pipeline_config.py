"""The plain facts of OSDFace's pipeline: sizes, noise schedule, and the images that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np

from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError

__all__ = ["LOGVAR", "OSDFACE", "PipelineConfig"]

# The type of the architecture in the options of a network.
OSDFACE = "OSDFace"
# Stable Diffusion was trained with a noise schedule of this length.
TIMESTEPS = 1000
# diffusers' VAE clamps a latent's log-variance to these bounds.
LOGVAR = (-30.0, 20.0)


class PipelineConfig:
    """The sizes and the noise schedule of a pipeline.

    Args:
        preset, vre, vae, unet, patch_size, timestep, beta_start, beta_end: see ``OSDFace``.

    Raises:
        QuantFaceError: the preset is unknown.
    """

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

    @classmethod
    def known(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of a network's options that a pipeline without networks takes."""
        names = signature(PipelineConfig).parameters
        return {name: value for name, value in options.items() if name in names}

    def check_input(self, images: Sequence[int], noise: Sequence[int] | None) -> None:
        """Raise QuantFaceError for shapes of images or noise that the network cannot take."""
        if len(images) != 4 or images[1] != 3:
            raise QuantFaceError(f"images of shape {tuple(images)}: expected (N, 3, H, W)")
        step = self.side_step
        height, width = images[-2:]
        if height % step or width % step:
            raise QuantFaceError(
                f"image of {width}x{height} pixels: both sides must be multiples of {step}"
            )
        wanted = self.latent_shape(images[0], height, width)
        if noise is not None and tuple(noise) != wanted:
            raise QuantFaceError(f"noise of shape {tuple(noise)}: expected {wanted}")
