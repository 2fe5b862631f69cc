"""Affine grids: zero is exact, errors stay below a step, gradients pass straight through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from quant_helpers import sqnr

from quantface_arch.quant.ops.quantizer import (
    dequantize,
    fake_quantize,
    grid,
    quantize,
    scale_and_zero_point,
)

BITS = st.integers(2, 8)
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@given(BITS, st.booleans(), FINITE, FINITE)
def test_error_inside_the_range_is_at_most_half_a_step(bits, symmetric, a, b):
    low, high = torch.tensor([min(a, b)]), torch.tensor([max(a, b)])
    scale, zero = scale_and_zero_point(low, high, bits, symmetric)
    x = low + (high - low) * torch.linspace(0, 1, 101)
    error = (fake_quantize(x, scale, zero, *grid(bits, symmetric)) - x).abs().max()
    # The zero point is rounded: an end of an asymmetric range may lie half a step off the grid.
    assert error <= scale * 1.001 * (0.5 if symmetric else 1.0)


@given(BITS, st.booleans(), FINITE, FINITE)
def test_zero_is_a_level(bits, symmetric, a, b):
    low, high = torch.tensor([min(a, b)]), torch.tensor([max(a, b)])
    scale, zero = scale_and_zero_point(low, high, bits, symmetric)
    assert fake_quantize(torch.zeros(1), scale, zero, *grid(bits, symmetric)).item() == 0


LARGEST = torch.finfo(torch.float32).max
HUGE = st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([LARGEST, -LARGEST])


@given(BITS, st.booleans(), HUGE, HUGE)
@example(8, False, -LARGEST, LARGEST)
@example(3, True, -LARGEST, LARGEST)
def test_ranges_up_to_the_limits_of_float32_stay_finite(bits, symmetric, a, b):
    low, high = torch.tensor([min(a, b)]), torch.tensor([max(a, b)])
    scale, zero = scale_and_zero_point(low, high, bits, symmetric)
    ends = grid(bits, symmetric)
    assert (scale > 0).all() and scale.isfinite().all()
    x = torch.stack((low, torch.zeros(1), low / 2 + high / 2, high))
    found = fake_quantize(x, scale, zero, *ends)
    assert found.isfinite().all() and found[1] == 0
    levels = dequantize(torch.arange(ends[0], ends[1] + 1), scale, zero)
    assert levels.isfinite().all()
    # In float64: the differences may pass float32's limits.
    assert ((found.double() - x.double()).abs() <= 1.001 * scale.double()).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (1.0, 3.0), (-3.0, 0.0), (-3.0, -1.0)])
def test_one_sided_ranges_use_all_levels(low, high):
    scale, zero = scale_and_zero_point(torch.tensor(low), torch.tensor(high), 4, False)
    x = torch.linspace(-3, 3, 1000) + (low + high) / 2
    q = quantize(x, scale, zero, *grid(4, False))
    assert q.unique().tolist() == list(range(16))
    assert scale.item() == pytest.approx(3 / 15)


def test_symmetric_grid_is_restricted_and_covers_both_ends():
    assert grid(4, True) == (-7, 7)
    scale, zero = scale_and_zero_point(torch.tensor(-1.4), torch.tensor(0.7), 4, True)
    q = quantize(torch.tensor([-1.4, 0.0, 1.4, 9.0]), scale, zero, -7, 7)
    assert q.tolist() == [-7, 0, 7, 7]
    assert q.dtype == torch.int32


def test_empty_and_tiny_ranges_stay_finite():
    for value in (0.0, 1e-44, 1e-38):
        end = torch.tensor(value)
        scale, zero = scale_and_zero_point(-end, end, 8, False)
        assert fake_quantize(torch.tensor([-1.0, value, 1.0]), scale, zero, 0, 255).isfinite().all()


@given(BITS, st.booleans())
def test_fake_quantize_is_dequantize_of_quantize_and_idempotent(bits, symmetric):
    x = torch.randn(5, 7)
    scale, zero = scale_and_zero_point(x.amin(1), x.amax(1), bits, symmetric)
    scale, zero, ends = scale[:, None], zero[:, None], grid(bits, symmetric)
    faked = fake_quantize(x, scale, zero, *ends)
    assert torch.equal(faked, dequantize(quantize(x, scale, zero, *ends), scale, zero))
    assert torch.equal(faked, fake_quantize(faked, scale, zero, *ends))


def test_dtype_of_the_input_is_kept():
    x = torch.randn(8).bfloat16()
    assert fake_quantize(x, torch.tensor(0.1), torch.tensor(0.0), -7, 7).dtype == torch.bfloat16


def test_gradient_is_one_inside_the_grid_and_zero_where_clamped():
    x = torch.tensor([-1.0, -0.4, 0.0, 0.26, 0.71, 5.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0.0), -7, 7).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_sqnr_rises_with_bits(symmetric):
    x = torch.randn(4096)
    ratios = []
    for bits in range(2, 9):
        scale, zero = scale_and_zero_point(x.min(), x.max(), bits, symmetric)
        ratios.append(sqnr(x, fake_quantize(x, scale, zero, *grid(bits, symmetric))))
    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0] + 30


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_step_and_zero_point_are_those_of_the_formula(symmetric):
    qmin, qmax = grid(4, symmetric)
    x = (torch.rand(400, dtype=torch.float64) * 4 - 2).float().requires_grad_(True)
    scale = torch.tensor(0.13, requires_grad=True)
    zero = torch.tensor(0.0 if symmetric else 6.0, requires_grad=True)
    weights = torch.randn(400)
    (fake_quantize(x, scale, zero, qmin, qmax) * weights).sum().backward()
    place = x.detach() / 0.13 + zero.detach()
    inside = (place.round() >= qmin) & (place.round() <= qmax)
    assert 0 < inside.sum() < 400
    # LSQ+: the rounding error in steps on the grid, the outermost level's place where clamped.
    step = torch.where(inside, place.round() - place, place.clamp(qmin, qmax) - zero.detach())
    torch.testing.assert_close(scale.grad, (weights * step).sum())
    torch.testing.assert_close(zero.grad, (weights * ~inside * -0.13).sum())
    # The input's gradient is the same as without training the grid.
    alone = x.detach().requires_grad_(True)
    (fake_quantize(alone, scale.detach(), zero.detach(), qmin, qmax) * weights).sum().backward()
    assert torch.equal(x.grad, alone.grad)
    assert torch.equal(x.grad, weights * inside)


@pytest.mark.parametrize("end", [-5.0, 5.0])
def test_where_everything_is_clamped_gradients_are_finite_differences(end):
    x, qmin, qmax, delta = torch.full((7,), end), 0, 15, 1e-3
    scale, zero = torch.tensor(0.2, requires_grad=True), torch.tensor(4.0, requires_grad=True)
    fake_quantize(x, scale, zero, qmin, qmax).sum().backward()
    s, z = scale.detach(), zero.detach()

    def value(scale, zero):
        return fake_quantize(x, scale, zero, qmin, qmax).sum()

    moved = (value(s + delta, z) - value(s - delta, z)) / (2 * delta)
    torch.testing.assert_close(scale.grad, moved, rtol=2e-3, atol=1e-2)
    moved = (value(s, z + delta) - value(s, z - delta)) / (2 * delta)
    torch.testing.assert_close(zero.grad, moved, rtol=2e-3, atol=1e-2)


def test_gradients_of_steps_have_the_shape_of_the_steps():
    x, scale = torch.randn(5, 7), torch.full((5, 1), 0.1, requires_grad=True)
    zero = torch.zeros(5, 1, requires_grad=True)
    fake_quantize(x, scale, zero, -7, 7).sum().backward()
    assert scale.grad.shape == zero.grad.shape == (5, 1)
    rows = []
    for row in x:
        one = torch.tensor(0.1, requires_grad=True)
        fake_quantize(row, one, torch.tensor(0.0), -7, 7).sum().backward()
        rows.append(one.grad)
    torch.testing.assert_close(scale.grad[:, 0], torch.stack(rows))
