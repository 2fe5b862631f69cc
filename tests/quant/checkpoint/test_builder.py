"""Builders: full networks, shells, and plain functions in their place."""

from __future__ import annotations

from small_networks import RRDB, TINY
from torch import nn

from quantface_arch.archs.build import ARCH_BUILDER, build_arch
from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.quant.checkpoint.builder import Builder


def test_a_plain_function_builds_shells_as_well():
    builder = Builder.of(lambda options: nn.Linear(options["width"], 1))
    for network in (builder.full({"width": 2}), builder.shell({"width": 2}), builder({"width": 2})):
        assert isinstance(network, nn.Linear)
    assert Builder.of(builder) is builder


def test_the_shell_of_osdface_has_no_layers():
    full, shell = ARCH_BUILDER.full(TINY), ARCH_BUILDER.shell(TINY)
    assert isinstance(full, OSDFace) and not list(shell.parameters())
    assert shell.latent_shape(1, 64, 64) == full.latent_shape(1, 64, 64)


def test_other_architectures_have_no_shell():
    assert type(ARCH_BUILDER.shell(RRDB)) is type(build_arch(RRDB))
