"""Rounding, matrix products and convolutions in int8, and group norms, for tensors of torch.

Kernels are operators of torch, so that its compiler fuses all that lies between them: a norm's last
step, an activation function, balancing and rounding become one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantface_arch.runtime.cuda.kernels import (
    BLOCKS,
    product_kernel,
    sums_kernel,
    tuned_product_kernel,
)

__all__ = [
    "NIBBLE",
    "Integers",
    "Window",
    "conv2d",
    "gather_taps",
    "group_moments",
    "matmul",
    "pack_nibbles",
    "quantize",
]

# Integers that half a byte holds.
NIBBLE = (-8, 7)
# Positions and channels that a program adds up at a time, and blocks of them.
SUM_ROWS, SUM_CHANNELS, SUM_BLOCKS = 16, 128, 32


class Integers(NamedTuple):
    """What a product needs beside its input.

    Attributes:
        weight: int8 (Cout, taps, Cin), or what ``pack_nibbles`` makes of it.
        packed: whether it is that.
        scale: float32 (Cout,), step of the input times step of the weight.
        correction: int32 (Cout,), sum of a row of the weight times the stored zero point.
        bias: float32 (Cout,), or None.
    """

    weight: Tensor
    packed: bool
    scale: Tensor
    correction: Tensor
    bias: Tensor | None


class Window(NamedTuple):
    """Where a convolution's taps lie: rows first, columns second; of two numbers each."""

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)

    def places(self, sides: Sequence[int]) -> list[int]:
        """Rows and columns of the output for those of the padded input."""
        facts = zip(sides, *self, strict=True)
        return [
            (side - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, dilation in facts
        ]


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
    inverse_step: Tensor,
    zero: Tensor,
    low: int,
    high: int,
) -> Tensor:
    """Stored levels of x, channels last: round(x·multiplier/step) + zero, in [low, high].

    It rounds like ``torch.fake_quantize_per_tensor_affine``: times the float32 reciprocal of the
    step, ties to even. What differs between layers comes in tensors, so that layers of one shape
    share a compiled kernel.

    Args:
        x: float (..., C), or (N, C, ...) with ``channel_axis`` 1.
        multiplier: float32 (C,), or None.
        inverse_step, zero: float32 (); ``zero``, ``low`` and ``high`` are stored levels.

    Returns:
        int8 (..., C), or (N, ..., C), contiguous.
    """
    value = x.movedim(channel_axis, -1).float()
    if multiplier is not None:
        value = value * multiplier
    value = (value * inverse_step).round() + zero
    return value.clamp(low, high).to(torch.int8).contiguous()


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
        levels: int8 (N, H, W, Cin), contiguous, padded.

    Returns:
        (N, Cout, H', W') in ``dtype``, channels last in memory.
    """
    places = window.places(levels.shape[1:3])
    return _product(levels, integers, dtype, places, window).permute(0, 3, 1, 2)


def gather_taps(levels: Tensor, window: Window, width: int) -> Tensor:
    """What a convolution's taps see as channels of one pixel: a few channels make a wide product.

    Args:
        levels: int8 (N, H, W, Cin), padded.
        width: channels to fill up to, with anything that weights of 0 are multiplied by.

    Returns:
        int8 (N, H', W', width), contiguous; channel tap·Cin + c is channel c of a tap.
    """
    (rows, columns), (down, right), (high, wide) = window
    height, breadth = window.places(levels.shape[1:3])
    taps = [
        levels[:, i * high :: down, j * wide :: right][:, :height, :breadth]
        for i in range(rows)
        for j in range(columns)
    ]
    gathered = torch.cat(taps, -1)
    return torch.nn.functional.pad(gathered, (0, width - gathered.shape[-1]))


def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, groups), float32, of channels (..., C) that stand side by side.

    The variance is the mean of squares less the squared mean, which costs twice as many digits as
    the mean has more than the deviation.

    Args:
        x: (N, ..., C), of a group norm's input with its channels moved to the end.
    """
    images, channels = len(x), x.shape[-1]
    positions = math.prod(x.shape[1:-1])
    sums = _channel_sums(x.reshape(images, positions, channels)).sum((1, 2))
    sums = sums.view(images, 2, groups, -1).sum(3) / (positions * channels // groups)
    mean, square = sums.unbind(1)
    return mean, (square - mean * mean).clamp(min=0)


def _empty_sums(x: Tensor) -> Tensor:
    """Where the sums of x go."""
    images, positions, channels = x.shape
    parts = _tiles(positions, SUM_ROWS * SUM_BLOCKS)
    return x.new_empty((images, parts, SUM_ROWS, 2, channels), dtype=torch.float32)


@torch.library.custom_op("quantface::channel_sums", mutates_args=())
def _channel_sums(x: Tensor) -> Tensor:
    """Sums (N, parts, rows, 2, C) of x (N, positions, C), in parts, and of its squares."""
    x = x.contiguous()
    images, positions, channels = x.shape
    sums = _empty_sums(x)
    columns = _block(channels, 16, SUM_CHANNELS)
    grid = _tiles(channels, columns), sums.shape[1], images
    sizes = {"BLOCK_R": SUM_ROWS, "BLOCK_C": columns}
    _launch(sums_kernel, grid, x, sums, positions, channels, SUM_BLOCKS, **sizes)
    return sums


_channel_sums.register_fake(_empty_sums)


def _product(
    levels: Tensor, integers: Integers, dtype: torch.dtype, places: Sequence[int], window: Window
) -> Tensor:
    """The output (N, *places, Cout) of levels (N, H, W, Cin)."""
    sides = [list(side) for side in window]
    return _int8_product(levels, *integers, dtype, list(places), *sides)


@torch.library.custom_op("quantface::int8_product", mutates_args=())
def _int8_product(
    levels: Tensor,
    weight: Tensor,
    packed: bool,
    scale: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    places: list[int],
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
) -> Tensor:
    """See ``Integers`` and ``Window``."""
    images, *sides, channels = levels.shape
    rows, outputs = images * math.prod(places), len(scale)
    y = levels.new_empty((images, *places, outputs), dtype=dtype)
    arguments = (
        *(levels, weight, scale, correction, bias, y, rows, outputs, channels, *sides, *places),
        *(*stride, *dilation, math.prod(kernel), kernel[1], packed, bias is not None),
    )

    def grid(blocks: Mapping[str, Any]) -> tuple[int, int]:
        return _tiles(outputs, blocks["BLOCK_N"]), _tiles(rows, blocks["BLOCK_M"])

    # A product and a sum made one would round otherwise than the reference.
    exact = {"enable_fp_fusion": False}
    if levels.is_cuda:
        _launch(tuned_product_kernel, grid, *arguments, **exact)
    else:
        sizes = _block(rows, 16, 128), _block(outputs, 16, 128), _block(weight.shape[-1], 32, 64)
        blocks = dict(zip(BLOCKS, sizes, strict=True))
        _launch(product_kernel, grid, *arguments, **blocks, **exact)
    return y


@_int8_product.register_fake
def _(
    levels: Tensor,
    weight: Tensor,
    packed: bool,
    scale: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    places: list[int],
    *window: list[int],
) -> Tensor:
    return levels.new_empty((len(levels), *places, len(scale)), dtype=dtype)


def _launch(kernel: Any, grid: Any, *arguments: Any, **options: int) -> None:
    """Run a kernel on its first argument's device, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


def _block(size: int, least: int, most: int) -> int:
    """A power of two that covers a size, within bounds."""
    return min(max(1 << (size - 1).bit_length(), least), most)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)
