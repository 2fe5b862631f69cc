"""Build the network of a checkpoint from the options that the checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Build", "Builder"]

Build = Callable[[dict[str, Any]], nn.Module]


@dataclass(frozen=True)
class Builder:
    """A function that builds networks, and optionally one that builds only their shells.

    A builder is itself callable and then builds the full network, so it can be used wherever a
    plain function is expected.

    Attributes:
        build_full: builds a network with all its layers.
        build_shell: builds only the code around the compiled parts of a network, without the layers
            inside them. None uses the full network.
    """

    build_full: Build
    build_shell: Build | None = None

    @classmethod
    def of(cls, build: Build) -> Builder:
        """Return ``build`` as a builder; a plain function builds full networks only."""
        return build if isinstance(build, cls) else cls(build)

    def full(self, options: dict[str, Any]) -> nn.Module:
        """Build the network with all its layers."""
        return self.build_full(options)

    def shell(self, options: dict[str, Any]) -> nn.Module:
        """Build the network that a runtime needs after compiling the network's parts."""
        return (self.build_shell or self.build_full)(options)

    def __call__(self, options: dict[str, Any]) -> nn.Module:
        return self.full(options)
