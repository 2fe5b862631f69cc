"""The other player of adversarial training: a discriminator, its loss and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.archs import build_network
from basicsr.losses import build_loss
from quantface_arch.errors import QuantFaceError, check_keys

__all__ = ["DISCRIMINATOR_OPTIONS", "Discriminator"]

DISCRIMINATOR_OPTIONS = {"network", "loss", "lr", "start_iter"}


class Discriminator:
    """A discriminator from BasicSR's registry that learns to tell restored from clean faces.

    Options under ``train: adversary``:
        network (dict): a registered discriminator.
        loss (dict): a registered GAN loss.
        lr (float): learning rate of the discriminator.
        start_iter (int): first iteration at which it plays. Default 0.

    Args:
        options: the block.
        device: where it lives.
        autocast: makes the context of its forward passes.

    Raises:
        QuantFaceError: an unknown option, or one that is missing.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        check_keys("train option adversary", options, DISCRIMINATOR_OPTIONS)
        for key in sorted(DISCRIMINATOR_OPTIONS - {"start_iter", *options}):
            raise QuantFaceError(f"train option adversary: {key} is missing")
        self.net = build_network(options["network"]).to(device)
        self.autocast = autocast
        self.loss = build_loss(options["loss"]).to(device)
        self.start_iter = int(options.get("start_iter", 0))
        self.optimizer = torch.optim.Adam(self.net.parameters(), options["lr"], betas=(0.0, 0.99))

    def _scores(self, image: Tensor) -> Tensor:
        with self.autocast():
            scores = self.net(image)
        return scores.float()

    def generator_loss(self, restored: Tensor) -> Tensor:
        """How badly the restored faces fool the discriminator; its own weights stay still."""
        self.net.requires_grad_(False)
        return self.loss(self._scores(restored), True, is_disc=False)

    def step(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Train the discriminator on one batch; returns its loss, detached."""
        self.net.requires_grad_(True)
        self.optimizer.zero_grad()
        real = self.loss(self._scores(clean), True, is_disc=True)
        fake = self.loss(self._scores(restored), False, is_disc=True)
        total = (real + fake) / 2
        total.backward()
        self.optimizer.step()
        return total.detach()
