"""The discriminator of adversarial training, with its loss and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.archs import build_network
from basicsr.losses import build_loss
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.options import DiscriminatorOptions
from quantface_arch.models.processes import average_gradients, broadcast_state

__all__ = ["Discriminator"]


class Discriminator:
    """A network of BasicSR's registry that learns to tell restored from clean faces.

    Every process of a distributed training holds the same weights: they start as the first
    process's, and gradients are averaged.

    Args:
        options: the block ``train: discriminator``.
        device: where the network lives.
        autocast: returns the context of its forward passes.

    Raises:
        QuantFaceError: the network or the loss cannot be built.
    """

    def __init__(
        self,
        options: DiscriminatorOptions,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.net = _built("network", build_network, options.network).to(device)
        self.loss = _built("loss", build_loss, options.loss).to(device)
        broadcast_state(self.net)
        self.autocast = autocast
        self.start_iter = options.start_iter
        self.optimizer = torch.optim.Adam(self.net.parameters(), options.lr, betas=(0.0, 0.99))

    def _scores(self, image: Tensor) -> Tensor:
        with self.autocast():
            scores = self.net(image)
        return scores.float()

    def generator_loss(self, restored: Tensor) -> Tensor:
        """Return the adversarial loss of restored faces; the discriminator is not trained."""
        self.net.requires_grad_(False)
        return self.loss(self._scores(restored), True, is_disc=False)

    def step(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Train the discriminator on one batch and return its loss, detached."""
        self.net.requires_grad_(True)
        self.optimizer.zero_grad()
        real = self.loss(self._scores(clean), True, is_disc=True)
        fake = self.loss(self._scores(restored), False, is_disc=True)
        total = (real + fake) / 2
        total.backward()
        average_gradients(self.net.parameters())
        self.optimizer.step()
        return total.detach()


def _built(part: str, build: Callable[[dict[str, Any]], Any], options: Any) -> Any:
    try:
        return build(dict(options))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise QuantFaceError(f"train option discriminator: {part}: {reason}") from error
