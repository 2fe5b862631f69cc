"""The exponential moving average (EMA) of trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """The exponential moving average of parameters over the steps of a training.

    Args:
        parameters: the trained parameters by name.
        decay: share of the average that remains after a step, in [0, 1). With 0, the average equals
            the parameters and takes no memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters) if decay else {}
        self._values = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current values of the parameters."""
        for name, value in self._values.items():
            value.lerp_(self._parameters[name], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the network inside the block, without copying.

        A nested block changes nothing.
        """
        if self._is_applied:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        self._is_applied = not self._is_applied
        for name, parameter in self._parameters.items():
            parameter.data, self._values[name] = self._values[name], parameter.data

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the average from a state dict of the network."""
        for name, value in self._values.items():
            value.copy_(state[name])
