"""Build networks from their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantface_arch.archs.pipeline import Pipeline
from quantface_arch.archs.pipeline_config import OSDFACE
from quantface_arch.archs.spandrel_net import TYPE as SPANDREL_NET
from quantface_arch.archs.spandrel_net import SpandrelNet
from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.quant.checkpoint.builder import Builder

__all__ = ["ARCH_BUILDER", "build_arch", "build_shell", "scale_of"]

# BasicSR registers some of its networks with this suffix, and finds them by the name without it.
SUFFIX = "_basicsr"
# These feature extractors of BasicSR's registry download or unpickle weights when they are built.
# They are not restorers.
FETCHING = ("VGGFeatureExtractor", "DFDNet")


def build_arch(options: Mapping[str, Any]) -> nn.Module:
    """Build any architecture in BasicSR's registry from ``{"type": NAME, **options}``.

    Raises:
        QuantFaceError: the type is missing or not registered, it does not take the options, or a
            layer would have no weights.
    """
    options = dict(options)
    name = options.pop("type", None)
    build = _builder(name)
    try:
        net = build(**options)
    except QuantFaceError:
        raise
    except MemoryError as error:
        raise QuantFaceError(f"network {name}: too large for the memory of this machine") from error
    except Exception as error:
        # A registered class may raise any exception for option values that it does not check.
        raise QuantFaceError(f"network {name}: {one_line(error)}") from error
    for key, parameter in net.named_parameters():
        if not parameter.numel():
            raise QuantFaceError(f"network {name}: {key} is empty, {tuple(parameter.shape)}")
    return net


def build_shell(options: Mapping[str, Any]) -> nn.Module:
    """Build the network without the layers that its ``parts`` use.

    Only OSDFace has such a shell. Any other architecture is built in full.
    """
    if options.get("type") != OSDFACE:
        return build_arch(options)
    return Pipeline(**Pipeline.known(options))


def scale_of(arch: Mapping[str, Any]) -> int:
    """Return how many times larger a network's images are, by its options or their default."""
    return int(arch.get("scale", 4 if arch.get("type") == "RRDBNet" else 1))


ARCH_BUILDER = Builder(build_arch, build_shell)


def _builder(name: Any) -> Callable[..., nn.Module]:
    """Return the class of a type; imports are here, since diffusers and BasicSR take seconds."""
    if name == OSDFACE:
        from quantface_arch.archs.osdface_arch import OSDFace

        return OSDFace
    if name == SPANDREL_NET:
        return SpandrelNet
    import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
    from basicsr.utils.registry import ARCH_REGISTRY

    if name in FETCHING:
        raise QuantFaceError(
            f"network type: {name} is refused, since it downloads or unpickles weights"
        )
    if name not in ARCH_REGISTRY and f"{name}{SUFFIX}" not in ARCH_REGISTRY:
        known = ", ".join(sorted({OSDFACE, SPANDREL_NET, *(name for name, _ in ARCH_REGISTRY)}))
        raise QuantFaceError(f"network type: found {name!r}, allowed is one of {known}")
    return ARCH_REGISTRY.get(name if name in ARCH_REGISTRY else f"{name}{SUFFIX}")
