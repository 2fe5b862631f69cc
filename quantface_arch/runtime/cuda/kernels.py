"""Triton kernels: int8 products with 32-bit sums on tensor cores, and statistics of group norms.

A level q of an unsigned grid, 0 to 255, is stored as q - 128. A level of a signed grid is stored
unchanged. The int8 number is called the *stored* level or zero point. Nothing here calls the jitted
part of Triton's own library, so these kernels run in its interpreter however that library was
loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl
from triton.testing import do_bench

__all__ = ["BLOCKS", "affine_kernel", "product_kernel", "sums_kernel", "tuned_product_kernel"]

# These name how many positions, outputs and channels a program takes at a time.
BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
# TRIED is the number of configurations that are compiled and timed for a size of product. With
# fewer than BUSY programs most of a GPU would be idle.
TRIED, BUSY = 3, 64
# Configurations are ordered from wide ones, which read the least memory, to narrow ones.
CONFIGS = [
    triton.Config(dict(zip(BLOCKS, blocks, strict=True)), num_warps=warps, num_stages=stages)
    for *blocks, warps, stages in (
        (128, 256, 128, 8, 3),
        (128, 256, 64, 8, 4),
        (128, 128, 128, 8, 3),
        (128, 128, 64, 4, 4),
        (64, 128, 128, 4, 4),
        (128, 64, 64, 4, 4),
        (64, 64, 128, 4, 4),
        (64, 32, 32, 4, 4),
    )
]


def _stored(facts: Mapping[str, Any]) -> int:
    """Return the bytes of one row and tap of the weight."""
    return (facts["channels"] + 1) // 2 if facts["PACKED"] else facts["channels"]


def _blocks_fit(facts: dict[str, Any]) -> bool:
    """Return whether the blocks divide the stored channels."""
    return _stored(facts) % facts["BLOCK_K"] == 0


# Triton must not specialize its code for values of these sizes that are 1 or multiples of 16,
# because the code would be no faster.
SIZES = ["rows", "height", "width", "out_height", "out_width"]
SIZES += ["stride_h", "stride_w", "dilation_h", "dilation_w"]


@triton.heuristics({"EVEN_K": _blocks_fit})
@triton.jit(do_not_specialize=SIZES)
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
    dilation_h: tl.tensor,
    dilation_w: tl.tensor,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    PACKED: tl.constexpr,
    BIASED: tl.constexpr,
    SPLITS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Compute y (rows, outputs), a convolution of levels, as a matrix product.

    ``levels`` are (N, height, width, channels) and ``weight`` is (outputs, TAPS, stored). A row of
    y is a position (n, i, j) of the output. The levels are padded already, so nothing is read
    outside the image. Neighbouring programs take the same positions and different outputs, so they
    find the levels in the cache.

    With SPLITS above 1, y is int32 (SPLITS, rows, outputs). Each split sums levels and weights over
    a share of the blocks and taps, without zero point, scale or bias.
    """
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and outputs beyond the last repeat the last one. They are not stored and need no mask.
    near = tl.minimum(m, rows - 1)
    place = (near % (out_height * out_width)).to(tl.int32)
    image = near // (out_height * out_width) * height
    first_i = place // out_width * stride_h
    first_j = place % out_width * stride_w
    stored = (channels + 1) // 2 if PACKED else channels
    blocks = (stored + BLOCK_K - 1) // BLOCK_K
    span = tl.arange(0, BLOCK_K)
    corner = levels + (((image + first_i) * width + first_j) * channels)[:, None] + span[None, :]
    output = tl.minimum(n, outputs - 1).to(tl.int64)
    weights = weight + output[None, :] * (TAPS * stored) + span[:, None]
    sums = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    # A single loop over the blocks within taps can be pipelined.
    steps = TAPS * blocks
    share = (steps + SPLITS - 1) // SPLITS
    start = tl.program_id(2) * share
    for step in range(start, tl.minimum(start + share, steps)):
        tap = step // blocks
        first = step % blocks * BLOCK_K
        down, right = tap // TAPS_W * dilation_h, tap % TAPS_W * dilation_w
        pixel = corner + ((down * width + right) * channels + first)
        b = weights + (tap * stored + first)
        # Blocks that fit need no masks. Masks cost work, and loads without them are copied
        # directly.
        if EVEN_K:
            a = tl.load(pixel)
            b = tl.load(b)
        else:
            a = tl.load(pixel, mask=(first + span < channels)[None, :], other=0)
            b = tl.load(b, mask=(first + span < stored)[:, None], other=0)
        if PACKED:
            sums = tl.dot(a, (b << 4) >> 4, sums, out_dtype=tl.int32)
            a = tl.load(pixel + stored, mask=(first + span + stored < channels)[None, :], other=0)
            b = b >> 4
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    kept = n < outputs
    target = y + m[:, None] * outputs + n[None, :]
    stored_too = (m < rows)[:, None] & kept[None, :]
    if SPLITS > 1:
        tl.store(target + tl.program_id(2).to(tl.int64) * rows * outputs, sums, mask=stored_too)
    else:
        sums -= tl.load(correction + n, mask=kept, other=0)[None, :]
        value = sums.to(tl.float32) * tl.load(scale + n, mask=kept, other=0.0)[None, :]
        if BIASED:
            value += tl.load(bias + n, mask=kept, other=0.0)[None, :]
        tl.store(target, value, mask=stored_too)


@triton.jit
def _plus(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a + b


@triton.jit
def sums_kernel(
    x: tl.tensor,
    sums: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    blocks: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Compute sums (N, parts, 2, channels) of x (N, positions, channels) and of its squares.

    A program takes ``blocks`` blocks of BLOCK_R positions.
    """
    part, image = tl.program_id(1), tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    kept = c < channels
    source = x + (image.to(tl.int64) * positions * channels + c)[None, :]
    total = tl.full((BLOCK_R, BLOCK_C), 0, tl.float32)
    squares = tl.full((BLOCK_R, BLOCK_C), 0, tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        r = block * BLOCK_R + row
        mask = (r < positions)[:, None] & kept[None, :]
        value = tl.load(source + r[:, None] * channels, mask=mask, other=0.0).to(tl.float32)
        total += value
        squares += value * value
    target = sums + (image * tl.num_programs(1) + part) * (2 * channels) + c
    tl.store(target, tl.reduce(total, 0, _plus), mask=kept)
    tl.store(target + channels, tl.reduce(squares, 0, _plus), mask=kept)


@triton.jit
def affine_kernel(
    sums: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    affine: tl.tensor,
    parts: tl.tensor,
    channels: tl.tensor,
    width: tl.tensor,
    count: tl.tensor,
    epsilon: tl.tensor,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Compute a group norm's factors and offsets from the sums of ``sums_kernel``.

    ``affine`` is (2, N, channels). A program takes a group of ``width`` channels, which has
    ``count`` values in an image.
    """
    image = tl.program_id(1)
    inside = tl.arange(0, BLOCK_C)
    c = tl.program_id(0) * width + inside
    kept = inside < width
    row = tl.arange(0, BLOCK_P)
    total = tl.full((BLOCK_P, BLOCK_C), 0, tl.float32)
    squares = tl.full((BLOCK_P, BLOCK_C), 0, tl.float32)
    source = sums + (image * parts * 2 * channels + c)[None, :]
    for block in range((parts + BLOCK_P - 1) // BLOCK_P):
        part = block * BLOCK_P + row
        mask = (part < parts)[:, None] & kept[None, :]
        place = source + (part * 2 * channels)[:, None]
        total += tl.load(place, mask=mask, other=0.0)
        squares += tl.load(place + channels, mask=mask, other=0.0)
    mean = tl.reduce(tl.reduce(total, 0, _plus), 0, _plus) / count
    square = tl.reduce(tl.reduce(squares, 0, _plus), 0, _plus) / count
    variance = tl.maximum(square - mean * mean, 0.0)
    factor = tl.load(weight + c, mask=kept, other=0.0) / tl.sqrt(variance + epsilon)
    offset = tl.load(bias + c, mask=kept, other=0.0) - factor * mean
    target = affine + image * channels + c
    tl.store(target, factor, mask=kept)
    tl.store(target + tl.num_programs(1) * channels, offset, mask=kept)


def fitting(
    configs: list[triton.Config], facts: dict[str, Any], **constants: Any
) -> list[triton.Config]:
    """Return the widest configurations whose blocks a product fills and that occupy the GPU.

    Args:
        configs: from wide to narrow; the last one fits any product.
    """
    facts = {**facts, **constants}
    rows, outputs = facts["rows"], facts["outputs"]
    stored = _stored(facts)

    def fits(blocks: Mapping[str, int]) -> bool:
        m, n, k = (blocks[name] for name in BLOCKS)
        programs = -(-rows // m) * -(-outputs // n)
        return n < 2 * outputs and k < 2 * stored and programs >= BUSY

    kept = [config for config in configs if fits(config.kwargs)]
    return kept[:TRIED] or configs[-1:]


def _seconds(call: Callable[[], None], quantiles: list[float]) -> Any:
    return do_bench(call, warmup=5, rep=20, quantiles=quantiles)


# This kernel uses the fastest configuration for each size of product. Configurations are timed when
# a size first occurs, and the result is kept on disk.
tuned_product_kernel = triton.autotune(
    CONFIGS,
    key=["rows", "outputs", "channels", "out_width", "stride_h", "TAPS", "PACKED"],
    prune_configs_by={"early_config_prune": fitting},
    do_bench=_seconds,
    cache_results=True,
)(product_kernel)
