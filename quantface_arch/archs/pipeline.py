"""OSDFace without its networks: the computations between them.

``ArrayPipeline`` has the same computations without torch. This module avoids the import of
diffusers, which takes seconds and 0.3 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantface_arch.archs.pipeline_config import LOGVAR, PipelineConfig

__all__ = ["OSDFaceOutput", "Pipeline"]


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


class Pipeline(PipelineConfig, nn.Module):
    """The pipeline VRE → VAE encoder → UNet at one timestep → x₀ → VAE decoder, without networks.

    A subclass defines the methods that ``parts`` names, or they are set on an instance.

    Args:
        args, options: see ``PipelineConfig``.

    Raises:
        QuantFaceError: see ``PipelineConfig``.
    """

    # See ``NetworkTraits`` for ``input_range``, ``parts`` and ``side_step``.
    input_range = (-1.0, 1.0)
    parts = ("encode_prompt", "encode_moments", "predict_noise", "decode")
    encode_prompt: Callable[[Tensor], tuple[Tensor, Tensor]]
    encode_moments: Callable[[Tensor], Tensor]
    predict_noise: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def __init__(self, *args: Any, **options: Any) -> None:
        nn.Module.__init__(self)
        PipelineConfig.__init__(self, *args, **options)

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
        self.check_input(lq.shape, None if noise is None else noise.shape)
        output = (self.autoencode if autoencode else self.forward_all)(lq, noise)
        if return_all:
            return output
        return output.image if self.training else output.image.clamp(-1, 1)
