"""Architectures by their options, from BasicSR's ARCH_REGISTRY."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from quantface_arch.errors import QuantFaceError

__all__ = ["build_arch"]


def build_arch(options: Mapping[str, Any]) -> nn.Module:
    """Build any architecture of BasicSR's registry from ``{"type": NAME, **options}``.

    Raises:
        QuantFaceError: no type, a type that is not registered, or options that it does not take.
    """
    name = options.get("type")
    if name not in ARCH_REGISTRY:
        raise QuantFaceError(f"network type: found {name!r}, allowed is one of {sorted_names()}")
    try:
        return build_network(dict(options))
    except TypeError as error:
        raise QuantFaceError(f"network {name}: {error}") from error


def sorted_names() -> str:
    """Names of all registered architectures, for messages."""
    return ", ".join(sorted(name for name, _ in ARCH_REGISTRY))
