"""Triton kernels: rounding to int8, and int8 products with 32-bit sums on tensor cores.

A level q of an unsigned grid, 0 to 255, is stored as q - 128, one of a signed grid as it is: what
is called a *stored* level or zero point below is that int8 number. Nothing here calls the jitted
part of Triton's own library, so that these kernels run in its interpreter whatever it was loaded
for.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["product_kernel", "quantize_kernel"]

# Adding and subtracting it rounds numbers below 2^22 to whole ones, ties to even: the mantissa ends
# at the units. No instruction of the interpreter does, and of the GPU only a library's.
ROUND = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def quantize_kernel(
    x: tl.tensor,
    multiplier: tl.tensor,
    levels: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    positions: tl.tensor,
    image_stride: tl.tensor,
    position_stride: tl.tensor,
    channel_stride: tl.tensor,
    inverse_step: tl.tensor,
    zero: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    BALANCED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Stored levels (rows, channels) of x, whose row r is position r % positions of an image."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    source = (r // positions) * image_stride + (r % positions) * position_stride
    source = source[:, None] + c[None, :].to(tl.int64) * channel_stride
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    if BALANCED:
        value = value * tl.load(multiplier + c, mask=c < channels, other=0.0)[None, :]
    # Clamped first, which gives the same, since the ends are whole numbers.
    value = tl.minimum(tl.maximum(value * inverse_step, low - zero), high - zero)
    value = (value + ROUND) - ROUND + zero
    tl.store(levels + r[:, None] * channels + c[None, :], value.to(tl.int8), mask=mask)


@triton.jit
def product_kernel(
    levels: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    correction: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_height: tl.tensor,
    out_width: tl.tensor,
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    top: tl.tensor,
    left: tl.tensor,
    dilation_h: tl.tensor,
    dilation_w: tl.tensor,
    zero: tl.tensor,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    PACKED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y (rows, outputs): convolution of levels (N, height, width, channels), as a matrix product.

    ``weight`` is (outputs, TAPS, stored); a row of y is a place (n, i, j) of the output.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = m % (out_height * out_width)
    image = (m // (out_height * out_width)).to(tl.int64) * height
    first_i = place // out_width * stride_h - top
    first_j = place % out_width * stride_w - left
    stored = (channels + 1) // 2 if PACKED else channels
    blocks = (stored + BLOCK_K - 1) // BLOCK_K
    sums = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    # One loop, of blocks within taps, which can be pipelined.
    for step in range(TAPS * blocks):
        tap = step // blocks
        k = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        i = first_i + tap // TAPS_W * dilation_h
        j = first_j + tap % TAPS_W * dilation_w
        inside = (m < rows) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        pixel = levels + (((image + i) * width + j) * channels)[:, None] + k[None, :]
        # Outside of the image is the value zero, whose level is the zero point.
        a = tl.load(pixel, mask=inside[:, None] & (k < channels)[None, :], other=zero)
        b = weight + n[None, :].to(tl.int64) * (TAPS * stored) + (tap * stored + k)[:, None]
        b = tl.load(b, mask=(n < outputs)[None, :] & (k < stored)[:, None], other=0)
        if PACKED:
            far = inside[:, None] & (k + stored < channels)[None, :]
            sums = tl.dot(a, (b << 4) >> 4, sums)
            a = tl.load(pixel + stored, mask=far, other=zero)
            b = b >> 4
        sums = tl.dot(a, b, sums)
    kept = n < outputs
    sums -= tl.load(correction + n, mask=kept, other=0)[None, :]
    value = sums.to(tl.float32) * tl.load(scale + n, mask=kept, other=0.0)[None, :]
    if BIASED:
        value += tl.load(bias + n, mask=kept, other=0.0)[None, :]
    target = y + m[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(target, value, mask=(m < rows)[:, None] & kept[None, :])
