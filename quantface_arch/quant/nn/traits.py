"""The traits of a network: facts that it states for the quantizer, the runtimes and the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from quantface_arch.quant.config.recipe import Recipe

__all__ = ["NetworkTraits", "set_traits", "traits_of"]


@dataclass(frozen=True)
class NetworkTraits:
    """The facts that a network may state about itself, with their defaults.

    A network states a trait by an attribute or a method of the same name. It needs no base class
    and no import from this package.

    Attributes:
        eight_bit_patterns: globs of the layers that keep 8 bits when a recipe asks for fewer.
        input_sources: method. Maps the name of a layer whose input is concatenated from several
            tensors to the number of channels of each.
        constant_layers: method. Maps the name of a submodule whose output does not depend on the
            image to that output. Runtimes replace such submodules by constants.
        parts: names of the methods that runtimes compile one by one, in the order in which they
            run. Each must be a function of tensors alone.
        side_step: both sides of the images that ``forward`` takes must be multiples of it.
        input_range: smallest and largest value of the images that ``forward`` takes.
        arch_options: the options from which the network was built, ``type`` included. Empty if they
            are unknown.
        quant_recipe: the recipe by which the layers were converted, None for a float network.
    """

    eight_bit_patterns: tuple[str, ...] = ()
    input_sources: Callable[[], Mapping[str, tuple[int, ...]]] = dict
    constant_layers: Callable[[], Mapping[str, Tensor]] = dict
    parts: tuple[str, ...] = ("forward",)
    side_step: int = 1
    input_range: tuple[float, float] = (0.0, 1.0)
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    quant_recipe: Recipe | None = None


_NAMES = tuple(trait.name for trait in fields(NetworkTraits))


def traits_of(net: nn.Module) -> NetworkTraits:
    """Return the traits of a network, with defaults for those that it does not state."""
    return NetworkTraits(**{name: getattr(net, name) for name in _NAMES if hasattr(net, name)})


def set_traits(net: nn.Module, **traits: Any) -> None:
    """Set traits of a network as attributes.

    Raises:
        AttributeError: there is no such trait.
    """
    for name, value in traits.items():
        if name not in _NAMES:
            raise AttributeError(f"networks have no trait {name!r}")
        setattr(net, name, value)
