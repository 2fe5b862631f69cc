"""Architectures by their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.errors import QuantFaceError

__all__ = ["build_arch"]

# Of BasicSR's registry: feature extractors, no restorers, that download or unpickle when made.
FETCHING = ("VGGFeatureExtractor", "DFDNet")


def build_arch(options: Mapping[str, Any]) -> nn.Module:
    """Build any architecture of BasicSR's registry from ``{"type": NAME, **options}``.

    Raises:
        QuantFaceError: no type, a type that is not registered, or options that it does not take.
    """
    options = dict(options)
    name = options.pop("type", None)
    # BasicSR imports all that it has, in seconds and some memory: not for ours.
    build = OSDFace if name == OSDFace.__name__ else _registered(name)
    try:
        return build(**options)
    except TypeError as error:
        raise QuantFaceError(f"network {name}: {error}") from error


def _registered(name: Any) -> Any:
    from quantface_arch.archs.registered import ARCH_REGISTRY

    if name in FETCHING:
        raise QuantFaceError(f"network type: {name} fetches weights by itself, which is refused")
    if name not in ARCH_REGISTRY:
        known = ", ".join(sorted(name for name, _ in ARCH_REGISTRY))
        raise QuantFaceError(f"network type: found {name!r}, allowed is one of {known}")
    return ARCH_REGISTRY.get(name)
