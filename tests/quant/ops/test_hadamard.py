"""Hadamard rotations: orthogonal at every order, as the dense matrix, and far cheaper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from quantface_arch.quant.ops.hadamard import (
    MIN_WIDTH,
    factors,
    hadamard,
    has_order,
    rotate,
    segments_of,
)

ORDERS = (1, 2, 4, 8, 12, 16, 20, 24, 44, 48, 60, 72, 84, 96, 128, 180, 192, 320, 360, 512)
WIDE = (640, 960, 1024, 1280, 1920, 2560, 5120)


@pytest.mark.parametrize("n", [*ORDERS, 640, 960])
def test_rows_are_orthogonal_and_entries_are_plus_or_minus_one(n):
    matrix = hadamard(n)
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n))


@pytest.mark.parametrize("n", [*ORDERS, 640])
def test_rotating_is_the_product_with_the_dense_matrix(n):
    x = torch.randn(3, n, dtype=torch.float64)
    dense = hadamard(n).double() / n**0.5
    torch.testing.assert_close(rotate(x, ((1, n),), -1), x @ dense)
    torch.testing.assert_close(rotate(x, ((1, n),), -1, inverse=True), x @ dense.T)


@pytest.mark.parametrize("n", [*ORDERS, *WIDE])
def test_norms_are_kept_and_the_inverse_undoes_it(n):
    x = torch.randn(2, n, 3)
    y = rotate(x, ((1, n),), 1)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rotate(y, ((1, n),), 1, inverse=True), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [*ORDERS, *WIDE])
def test_factors_multiply_to_the_order(n):
    parts = factors(n)
    assert parts is not None
    assert math.prod(parts) == n
    assert all(hadamard(part).shape == (part, part) for part in parts)


@pytest.mark.parametrize("n", [320, *WIDE, 2**14])
def test_work_per_channel_grows_like_the_logarithm(n):
    # The dense product costs n operations a channel, a chain of factors their sum.
    parts = factors(n)
    assert parts is not None
    assert sum(parts) <= 8 * math.log2(n) + 4


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_segments_are_rotated_each_by_itself_along_any_axis(axis):
    segments = ((2, 16), (1, 20), (3, 4))
    dense = torch.block_diag(
        *[hadamard(size) / size**0.5 for count, size in segments for _ in range(count)]
    )
    x = torch.randn(64, 64, 64)
    expected = (x.movedim(axis, -1) @ dense).movedim(-1, axis)
    torch.testing.assert_close(rotate(x, segments, axis), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [20, 320, 1280])
def test_float64_keeps_its_precision(n):
    x = torch.randn(4, n, dtype=torch.float64)
    y = rotate(x, ((1, n),), -1)
    assert y.dtype == torch.float64
    assert (y.norm(dim=1) / x.norm(dim=1) - 1).abs().max() < 1e-14
    assert (rotate(y, ((1, n),), -1, inverse=True) - x).abs().max() < 1e-13


class Copies(TorchDispatchMode):
    """Counts the copies of tensors to another device or dtype."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_factors_are_copied_once_to_each_device_and_dtype(device, dtype):
    x = torch.zeros(2, 960, device=device, dtype=dtype)
    rotate(x, ((1, 960),), -1)
    with Copies() as copies:
        y = rotate(x, ((1, 960),), -1)
    assert copies.count == 0
    assert (y.device.type, y.dtype, y.shape) == (device, dtype, x.shape)


def test_a_factor_made_in_inference_mode_serves_training(monkeypatch):
    monkeypatch.setattr("quantface_arch.quant.ops.hadamard._FACTORS", {})
    with torch.inference_mode():
        rotate(torch.randn(2, 20), ((1, 20),), -1)
    x = torch.randn(2, 20, requires_grad=True)
    rotate(x, ((1, 20),), -1).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_a_factor_made_while_tracing_is_not_kept(monkeypatch):
    monkeypatch.setattr("quantface_arch.quant.ops.hadamard._FACTORS", {})
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        rotate(mode.from_tensor(torch.randn(2, 20)), ((1, 20),), -1)
    assert type(rotate(torch.randn(2, 20), ((1, 20),), -1)) is torch.Tensor


def test_memory_in_another_order_is_no_obstacle():
    x = torch.randn(2, 48, 5, 7).contiguous(memory_format=torch.channels_last)
    segments = segments_of((48,))
    torch.testing.assert_close(rotate(x, segments, -3), rotate(x.contiguous(), segments, -3))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 7, 14, 28 * 7, 36, 92])
def test_orders_that_cannot_be_built_are_refused(n):
    assert not has_order(n)
    with pytest.raises(ValueError, match=f"Hadamard order {n}"):
        hadamard(n)


@given(st.lists(st.integers(1, 800), min_size=1, max_size=3), st.sampled_from([None, 16, 64, 128]))
def test_blocks_divide_their_source_and_are_never_larger_than_wanted(sources, block):
    segments = segments_of(tuple(sources), block)
    if not segments:
        fits = [
            any(width % size == 0 and has_order(size) for size in range(MIN_WIDTH, most + 1))
            for width, most in ((width, min(block or width, width)) for width in sources)
        ]
        assert not all(fits)
        return
    assert [count * size for count, size in segments] == sources
    for _, size in segments:
        assert has_order(size)
        assert MIN_WIDTH <= size <= (block or max(sources))


@pytest.mark.parametrize(
    ("sources", "block", "expected"),
    [
        ((320,), None, ((1, 320),)),
        ((960,), None, ((1, 960),)),
        ((640, 320), None, ((1, 640), (1, 320))),
        ((320,), 64, ((5, 64),)),
        ((48,), 32, ((2, 24),)),
        ((112,), None, ((7, 16),)),
        ((17,), None, ()),
        ((15,), None, ()),
        ((320, 17), None, ()),
        ((36,), None, ()),
    ],
)
def test_widths_of_known_networks(sources, block, expected):
    assert segments_of(sources, block) == expected


@pytest.mark.parametrize("n", [4, 16, 64, 256, 1024])
def test_a_regular_matrix_has_equal_sums_in_all_rows_and_columns(n):
    matrix = hadamard(n, regular=True)
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n))
    assert bool((matrix.sum(0) == n**0.5).all() and (matrix.sum(1) == n**0.5).all())
    x = torch.randn(3, n, dtype=torch.float64)
    dense = matrix.double() / n**0.5
    torch.testing.assert_close(rotate(x, ((1, n),), -1, regular=True), x @ dense)
    back = rotate(x @ dense, ((1, n),), -1, inverse=True, regular=True)
    torch.testing.assert_close(back, x)
    # Channels that are all alike stay so; Sylvester's matrix adds them up in one.
    alike = torch.ones(1, n)
    assert float(rotate(alike, ((1, n),), -1, regular=True).abs().max()) == pytest.approx(1)
    assert float(rotate(alike, ((1, n),), -1).abs().max()) == pytest.approx(n**0.5)


@pytest.mark.parametrize("n", [0, 1, 2, 8, 12, 32, 48, 512])
def test_regular_orders_are_powers_of_four(n):
    assert not has_order(n, regular=True)
    with pytest.raises(ValueError, match="powers of 4"):
        hadamard(n, regular=True)


@given(st.integers(1, 80).map(lambda count: 16 * count), st.sampled_from([None, 16, 32, 64, 256]))
def test_regular_segments_divide_the_width_by_the_largest_power_of_four(width, block):
    [(count, size)] = segments_of((width,), block, regular=True)
    assert count * size == width and has_order(size, regular=True)
    assert size <= (block or width)
    assert width % (4 * size) or 4 * size > (block or width)
