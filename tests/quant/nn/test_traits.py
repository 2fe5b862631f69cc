"""Traits of networks: defaults, what a network states, and what is set from outside."""

from __future__ import annotations

import pytest
import torch
from small_networks import TINY
from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import quantize
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.traits import NetworkTraits, set_traits, traits_of


class Stating(nn.Module):
    """A network that states two traits, one of them by a method."""

    input_range = (-1.0, 1.0)

    def input_sources(self):
        return {"first": (3, 5)}


def test_a_plain_network_has_the_defaults():
    traits = traits_of(nn.Linear(2, 2))
    assert traits == NetworkTraits()
    assert traits.parts == ("forward",) and traits.input_range == (0, 1)
    assert traits.input_sources() == traits.constant_layers() == traits.arch_options == {}


def test_stated_traits_replace_their_defaults_alone():
    traits = traits_of(Stating())
    assert traits.input_range == (-1, 1)
    assert traits.input_sources() == {"first": (3, 5)}
    assert traits.parts == ("forward",) and traits.eight_bit_patterns == ()


def test_osdface_states_what_the_quantizer_and_the_runtimes_read():
    net = build_arch(TINY)
    traits = traits_of(net)
    assert all(callable(getattr(net, part)) for part in traits.parts)
    assert traits.eight_bit_patterns == net.eight_bit_patterns
    assert set(traits.constant_layers()) <= {name for name, _ in net.named_modules()}


def test_quantizing_sets_the_recipe():
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    quantize(net, "w4a8", torch.rand(2, 3, 16, 16), progress=False)
    assert traits_of(net).quant_recipe == Recipe.from_name("w4a8")


def test_an_unknown_trait_is_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(AttributeError, match="no trait 'input_rage'"):
        set_traits(net, input_rage=(-1, 1))
    set_traits(net, arch_options={"type": "Toy"})
    assert traits_of(net).arch_options == net.arch_options == {"type": "Toy"}
