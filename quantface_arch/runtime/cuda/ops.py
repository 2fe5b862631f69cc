"""Rounding, matrix products and convolutions in int8, for tensors of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantface_arch.runtime.cuda.kernels import product_kernel, quantize_kernel

__all__ = ["NIBBLE", "Integers", "Window", "conv2d", "matmul", "pack_nibbles", "quantize"]

# Integers that half a byte holds.
NIBBLE = (-8, 7)


class Integers(NamedTuple):
    """What a product needs beside its input.

    Attributes:
        weight: int8 (Cout, taps, Cin), or what ``pack_nibbles`` makes of it.
        packed: whether it is that.
        scale: float32 (Cout,), step of the input times step of the weight.
        correction: int32 (Cout,), sum of a row of the weight times the stored zero point.
        bias: float32 (Cout,), or None.
        zero: the input's stored zero point.
    """

    weight: Tensor
    packed: bool
    scale: Tensor
    correction: Tensor
    bias: Tensor | None
    zero: int


class Window(NamedTuple):
    """Where a convolution's taps lie: rows first, columns second.

    Attributes:
        kernel, stride, dilation: of two numbers each.
        padding: left, right, top, bottom, by the value zero.
    """

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)


def pack_nibbles(weight: Tensor) -> Tensor:
    """Two integers in a byte: int8 (Cout, taps, Cin) → int8 (Cout, taps, ⌈Cin/2⌉).

    The low half of byte k is channel k, the high half channel k + ⌈Cin/2⌉, so that a block of bytes
    is two blocks of channels and nothing has to be interleaved.

    Args:
        weight: of integers from -8 to 7.
    """
    stored = (weight.shape[-1] + 1) // 2
    low, high = weight[..., :stored], weight[..., stored:]
    high = torch.nn.functional.pad(high, (0, stored - high.shape[-1]))
    return ((low & 15) | (high << 4)).contiguous()


def quantize(
    x: Tensor,
    channel_axis: int,
    multiplier: Tensor | None,
    step: float,
    zero: int,
    low: int,
    high: int,
) -> Tensor:
    """Stored levels of x, channels last: round(x·multiplier/step) + zero, in [low, high].

    It rounds like ``torch.fake_quantize_per_tensor_affine``: times the float32 reciprocal of the
    step, ties to even.

    Args:
        x: float (..., C), or (N, C, ...) with ``channel_axis`` 1; read where it lies.
        multiplier: float32 (C,), or None.
        zero, low, high: stored zero point and range, -128 to 127.

    Returns:
        int8 (..., C), or (N, ..., C).
    """
    x = x.movedim(channel_axis, -1)
    shape, channels = x.shape, x.shape[-1]
    positions = math.prod(shape[1:-1])
    try:
        x = x.view(-1, positions, channels)
    except RuntimeError:
        x = x.reshape(-1, positions, channels)
    levels = torch.empty(shape, dtype=torch.int8, device=x.device)
    rows = len(x) * positions
    blocks = _block(rows, 1, 32), _block(channels, 1, 128)
    inverse = float(torch.tensor(step).reciprocal())
    _launch(
        quantize_kernel,
        (_tiles(rows, blocks[0]), _tiles(channels, blocks[1])),
        *(x, multiplier, levels, rows, channels, positions, *x.stride(), inverse, zero, low, high),
        *(multiplier is not None, *blocks),
    )
    return levels


def matmul(levels: Tensor, integers: Integers, dtype: torch.dtype) -> Tensor:
    """scale·((levels - zero)·weightᵀ) + bias, of a weight with one tap.

    Args:
        levels: int8 (..., Cin), contiguous.

    Returns:
        (..., Cout) in ``dtype``.
    """
    *shape, channels = levels.shape
    pixels = levels.view(-1, 1, 1, channels)
    return _product(pixels, integers, dtype, (1, 1), Window()).view(*shape, len(integers.scale))


def conv2d(levels: Tensor, integers: Integers, dtype: torch.dtype, window: Window) -> Tensor:
    """The convolution of (levels - zero) and the weight, times scale, plus bias.

    Args:
        levels: int8 (N, H, W, Cin), contiguous.

    Returns:
        (N, Cout, H', W') in ``dtype``, channels last in memory.
    """
    left, right, top, bottom = window.padding
    sides = levels.shape[1] + top + bottom, levels.shape[2] + left + right
    facts = zip(sides, window.kernel, window.stride, window.dilation, strict=True)
    places = [
        (side - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, stride, dilation in facts
    ]
    return _product(levels, integers, dtype, places, window).permute(0, 3, 1, 2)


def _product(
    levels: Tensor, integers: Integers, dtype: torch.dtype, places: Sequence[int], window: Window
) -> Tensor:
    """The output (N, *places, Cout) of levels (N, H, W, Cin)."""
    images, *sides, channels = levels.shape
    rows = images * math.prod(places)
    left, _, top, _ = window.padding
    outputs = len(integers.scale)
    y = torch.empty(images, *places, outputs, dtype=dtype, device=levels.device)
    weight, packed, scale, correction, bias, zero = integers
    blocks = _block(rows, 16, 128), _block(outputs, 16, 128), _block(weight.shape[-1], 32, 64)
    _launch(
        product_kernel,
        (_tiles(rows, blocks[0]), _tiles(outputs, blocks[1])),
        *(levels, weight, scale, correction, bias, y, rows, outputs, channels, *sides, *places),
        *(*window.stride, top, left, *window.dilation, zero),
        *(math.prod(window.kernel), window.kernel[1], packed, bias is not None, *blocks),
        num_warps=8 if blocks[0] * blocks[1] > 64 * 64 else 4,
    )
    return y


def _launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: int) -> None:
    """Run a kernel on its first argument's device, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):
        # A product and a sum made one would round otherwise than the reference.
        kernel[grid](*arguments, enable_fp_fusion=False, **options)


def _block(size: int, least: int, most: int) -> int:
    """A power of two that covers a size, within bounds."""
    return min(max(1 << (size - 1).bit_length(), least), most)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)
