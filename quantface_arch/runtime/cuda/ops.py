"""Rounding, matrix products and convolutions in int8, on torch tensors.

The kernels are torch operators, so its compiler fuses everything between them. The last operation
of a norm, an activation function, balancing and rounding take one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantface_arch.runtime.cuda.kernels import BLOCKS, product_kernel, tuned_product_kernel

__all__ = [
    "NIBBLE",
    "Integers",
    "Window",
    "block",
    "conv2d",
    "gather_taps",
    "launch",
    "matmul",
    "pack_nibbles",
    "quantize",
    "tiles",
]

# Half a byte holds the integers in this range.
NIBBLE = (-8, 7)
# A GPU should run ENOUGH programs, each with at least WORTH blocks. A product with fewer programs
# is split along its sums.
ENOUGH, WORTH = 256, 4
SPLIT_BLOCKS = dict(zip(BLOCKS, (64, 64, 128), strict=True))


class Integers(NamedTuple):
    """The operands of a product other than its input.

    Attributes:
        weight: int8 (Cout, taps, Cin), or the result of ``pack_nibbles``.
        packed: whether the weight is packed.
        scale: float32 (Cout,), the scale of the input times the scale of the weight.
        correction: int32 (Cout,), the sum of a row of the weight times the stored zero point.
        bias: float32 (Cout,), or None.
    """

    weight: Tensor
    packed: bool
    scale: Tensor
    correction: Tensor
    bias: Tensor | None


class Window(NamedTuple):
    """The taps of a convolution; each field has a number for rows and one for columns."""

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)

    def places(self, sides: Sequence[int]) -> list[int]:
        """Return the rows and columns of the output for those of the padded input."""
        facts = zip(sides, *self, strict=True)
        return [
            (side - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, dilation in facts
        ]


def pack_nibbles(weight: Tensor) -> Tensor:
    """Pack two integers into a byte: int8 (Cout, taps, Cin) → int8 (Cout, taps, ⌈Cin/2⌉).

    The low half of byte k is channel k, the high half is channel k + ⌈Cin/2⌉. A block of bytes is
    therefore two blocks of channels, and nothing has to be interleaved.

    Args:
        weight: integers from -8 to 7.
    """
    stored = (weight.shape[-1] + 1) // 2
    low, high = weight[..., :stored], weight[..., stored:]
    high = torch.nn.functional.pad(high, (0, stored - high.shape[-1]))
    return ((low & 15) | (high << 4)).contiguous()


def quantize(
    x: Tensor,
    channel_axis: int,
    multiplier: Tensor | None,
    inverse_scale: Tensor,
    zero: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Return stored levels of x: round(x·multiplier/scale) + zero, clamped to [low, high].

    It rounds like ``torch.fake_quantize_per_tensor_affine``: it multiplies by the float32
    reciprocal of the scale, and ties go to even. The values that differ between layers are tensors,
    so layers of one shape share a compiled kernel.

    Args:
        x: float (..., C), or (N, C, ...) with ``channel_axis`` 1.
        multiplier: float32 (C,), or None.
        inverse_scale, zero: float32 ().
        low, high: float32 () or (C,); like ``zero``, they are stored levels.

    Returns:
        int8 (..., C), or (N, ..., C), contiguous.
    """
    value = x.movedim(channel_axis, -1).float()
    if multiplier is not None:
        value = value * multiplier
    value = (value * inverse_scale).round() + zero
    return value.clamp(low, high).to(torch.int8).contiguous()


def matmul(levels: Tensor, integers: Integers, dtype: torch.dtype) -> Tensor:
    """Return scale·((levels - zero)·weightᵀ) + bias for a weight with one tap.

    Args:
        levels: int8 (..., Cin), contiguous.

    Returns:
        (..., Cout) in ``dtype``.
    """
    *shape, channels = levels.shape
    pixels = levels.view(-1, 1, 1, channels)
    return _product(pixels, integers, dtype, (1, 1), Window()).view(*shape, len(integers.scale))


def conv2d(levels: Tensor, integers: Integers, dtype: torch.dtype, window: Window) -> Tensor:
    """Return the convolution of (levels - zero) with the weight, times scale, plus bias.

    Args:
        levels: int8 (N, H, W, Cin), contiguous, padded.

    Returns:
        (N, Cout, H', W') in ``dtype``, channels-last in memory.
    """
    places = window.places(levels.shape[1:3])
    return _product(levels, integers, dtype, places, window).permute(0, 3, 1, 2)


def gather_taps(levels: Tensor, window: Window, width: int) -> Tensor:
    """Gather the taps of a convolution as channels, so that a few channels make a wide product.

    Args:
        levels: int8 (N, H, W, Cin), padded.
        width: the number of channels to pad to. The padding may hold anything, since its weights
            are 0.

    Returns:
        int8 (N, H', W', width), contiguous. Channel tap·Cin + c is channel c of a tap.
    """
    for axis, (kernel, stride, dilation) in enumerate(zip(*window, strict=True), 1):
        levels = levels.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    gathered = levels.movedim(3, -1).flatten(3)
    return torch.nn.functional.pad(gathered, (0, width - gathered.shape[-1]))


def _product(
    levels: Tensor, integers: Integers, dtype: torch.dtype, places: Sequence[int], window: Window
) -> Tensor:
    """Return the output (N, *places, Cout) for levels (N, H, W, Cin)."""
    sides = [list(side) for side in window]
    shape = len(levels), *places, len(integers.scale)
    splits = split_sums(math.prod(shape[:-1]), shape[-1], integers.weight.shape[1:])
    y = _int8_product(levels, *integers, dtype, list(places), *sides, splits)
    if splits == 1:
        return y
    value = (y.sum(0, dtype=torch.int32) - integers.correction).float() * integers.scale
    return (value if integers.bias is None else value + integers.bias).to(dtype)


def split_sums(rows: int, outputs: int, sums: Sequence[int]) -> int:
    """Return the number of splits for sums over taps and stored channels."""
    m, n, k = SPLIT_BLOCKS.values()
    taps, stored = sums
    programs = tiles(rows, m) * tiles(outputs, n)
    steps = taps * tiles(stored, k)
    wanted = 1 if programs > ENOUGH // 2 else min(tiles(ENOUGH, programs), steps // WORTH)
    # No split may be empty.
    return tiles(steps, tiles(steps, max(wanted, 1)))


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
    splits: int,
) -> Tensor:
    """Return the product, or the int32 sums of each split; see ``Integers`` and ``Window``."""
    images, *sides, channels = levels.shape
    rows, outputs = images * math.prod(places), len(scale)
    y = _empty_product(levels, scale, dtype, places, splits)
    arguments = (
        *(levels, weight, scale, correction, bias, y, rows, outputs, channels, *sides, *places),
        *(*stride, *dilation, math.prod(kernel), kernel[1], packed, bias is not None),
        splits,
    )

    def grid(blocks: Mapping[str, Any]) -> tuple[int, int, int]:
        return tiles(outputs, blocks["BLOCK_N"]), tiles(rows, blocks["BLOCK_M"]), splits

    # A fused multiply-add would round differently from the reference.
    exact = {"enable_fp_fusion": False}
    if splits > 1:
        launch(product_kernel, grid, *arguments, **SPLIT_BLOCKS, num_stages=4, **exact)
    elif levels.is_cuda:
        launch(tuned_product_kernel, grid, *arguments, **exact)
    else:
        sizes = block(rows, 16, 128), block(outputs, 16, 128), block(weight.shape[-1], 32, 64)
        blocks = dict(zip(BLOCKS, sizes, strict=True))
        launch(product_kernel, grid, *arguments, **blocks, **exact)
    return y


def _empty_product(
    levels: Tensor, scale: Tensor, dtype: torch.dtype, places: list[int], splits: int
) -> Tensor:
    shape = len(levels), *places, len(scale)
    if splits > 1:
        return levels.new_empty((splits, *shape), dtype=torch.int32)
    return levels.new_empty(shape, dtype=dtype)


@_int8_product.register_fake
def _(levels: Tensor, *others: Any) -> Tensor:
    _, _, scale, _, _, dtype, places, *_, splits = others
    return _empty_product(levels, scale, dtype, places, splits)


def launch(kernel: Any, grid: Any, *arguments: Any, **options: int) -> None:
    """Run a kernel on its first argument's device, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


def block(size: int, least: int, most: int) -> int:
    """Return the least power of two that covers a size, within bounds."""
    return min(max(1 << (size - 1).bit_length(), least), most)


def tiles(size: int, block: int) -> int:
    """Return the number of blocks that cover a size."""
    return -(-size // block)
