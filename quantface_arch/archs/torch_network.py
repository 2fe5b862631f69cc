"""A torch module as a network on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from quantface_arch.archs.array_network import ArrayNetwork
from quantface_arch.quant.nn.traits import traits_of

__all__ = ["TorchNetwork"]


class TorchNetwork(ArrayNetwork):
    """A torch module on a device.

    Args:
        module: maps images (N, 3, H, W) to others. To sample, it also takes a keyword ``noise``.
        device: a torch device.
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu") -> None:
        self.module, self.device = module.eval(), torch.device(device)
        traits = traits_of(module)
        self.arch_options, self.input_range = traits.arch_options, traits.input_range
        self.device_type = self.device.type

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        # A network that does not sample need not accept the keyword.
        options = {} if noise is None else {"noise": self._tensor(noise)}
        return self.module(self._tensor(images), **options).float().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        method: Any = getattr(self.module, "latent_shape", None)
        if method is None:
            return super().latent_shape(batch, height, width)
        return method(batch, height, width)
