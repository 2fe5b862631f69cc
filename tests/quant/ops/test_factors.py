"""Rounded factors: each component is on a grid that it determines itself, and close to before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantface_arch.quant.ops.factors import factor_scale, per_component, rounded_factors
from quantface_arch.quant.ops.lowrank import low_rank_weight, svd_factors

BITS = (2, 3, 4, 6, 8)


@given(st.integers(0, 2**31), st.sampled_from(BITS), st.floats(-30, 30))
def test_rounding_twice_changes_nothing(seed, bits, magnitude):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(5, 7, 3, 3, generator=generator) * 2.0**magnitude
    up = torch.randn(6, 5, generator=generator) * torch.rand(5, generator=generator)
    down[1] = 0
    once = rounded_factors(down, up, bits)
    twice = rounded_factors(*once, bits)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    for factor, axis in zip(once, (0, 1), strict=True):
        scale = per_component(factor_scale(factor, axis, bits), factor, axis)
        assert torch.equal((factor / scale).round() * scale, factor)
        assert float((factor / scale).abs().max()) <= 2 ** (bits - 1) - 1 + 1e-3


@pytest.mark.parametrize("shape", [(24, 40), (16, 8, 3), (12, 16, 3, 3)])
def test_more_bits_are_closer_and_eight_lose_little(shape):
    weight = torch.randn(shape)
    factors = svd_factors(weight, 4)
    wanted = low_rank_weight(*factors)
    errors = [
        float((low_rank_weight(*rounded_factors(*factors, bits)) - wanted).norm() / wanted.norm())
        for bits in BITS
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_sixteen_bits_are_not_rounded_and_gradients_pass():
    down, up = torch.randn(2, 5, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    same = rounded_factors(down, up, 16)
    assert same[0] is down and same[1] is up
    low_rank_weight(*rounded_factors(down, up, 4)).sum().backward()
    assert all(float(value.grad.abs().sum()) > 0 for value in (down, up))
