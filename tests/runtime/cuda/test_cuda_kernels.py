"""The CUDA runtime's kernels, in Triton's interpreter on the CPU and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from interpreted_kernels import kernels, ops
from quant_helpers import sqnr
from torch import nn

from quantface_arch.quant.ops.quantizer import grid
from quantface_arch.runtime.cuda.layer import LONGEST
from quantface_arch.runtime.cuda.norm import FusibleGroupNorm


def integers_of(weight, zero, packed, scale=None, bias=None):
    """Return the operands of a weight (Cout, Cin, kh, kw); scales of one give the plain sums."""
    flat = weight.flatten(2).movedim(1, -1).contiguous()
    stored = ops.pack_nibbles(flat) if packed else flat
    scale = torch.ones(len(weight)) if scale is None else scale
    correction = flat.sum((1, 2), dtype=torch.int32) * zero
    return ops.Integers(stored, packed, scale, correction, bias)


def random_weight(packed, *shape):
    low, high = ops.NIBBLE if packed else (-128, 127)
    return torch.randint(low, high + 1, shape, dtype=torch.int8)


def assert_rounded_as_by_torch(x, multiplier, step, zero, bits, symmetric):
    """Normalize x (N, C, H, W)."""
    low, high = grid(bits, symmetric)
    offset = 0 if symmetric else 128
    factor = 1 if multiplier is None else multiplier.view(-1, 1, 1)
    wanted = torch.fake_quantize_per_tensor_affine(x.float() * factor, step, zero, low, high)
    stored = (torch.tensor(float(level - offset)) for level in (zero, low, high))
    levels = ops.quantize(x, 1, multiplier, torch.tensor(step).reciprocal(), *stored)
    values = (levels.float() + offset - zero) * torch.tensor(step)
    assert levels.is_contiguous() and torch.equal(values, wanted.movedim(1, -1))


def ties_and_others(step, high):
    """Return values halfway between two levels, and others far beyond the grid."""
    ties = (torch.arange(-300, 300) / 2 * step).view(1, 6, 5, 20)
    return torch.cat((ties, torch.randn(1, 33, 5, 20) * step * high), 1)


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_rounding_is_torch_s_fake_quantization_bit_by_bit(bits, symmetric, balanced):
    high = grid(bits, symmetric)[1]
    multiplier = torch.rand(39) * 4 - 2 if balanced else None
    # The scales are with and without an exact reciprocal.
    for step in (0.25, 0.0137):
        zero = 0 if symmetric else high // 3
        x = ties_and_others(step, high)
        assert_rounded_as_by_torch(x, multiplier, step, zero, bits, symmetric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_of_every_dtype_are_read_where_they_lie(dtype):
    x = ties_and_others(0.25, 255).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    for laid in (x, last, x.transpose(2, 3), x[..., ::3]):
        assert_rounded_as_by_torch(laid, torch.rand(39), 0.25, 7, 8, False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 37, 19), (130, 64, 129), (17, 200, 3), (3, 3000, 70)]
)
def test_matrix_products_are_exact_for_all_sizes(packed, shape):
    rows, channels, outputs = shape
    levels = torch.randint(-128, 128, (rows, channels), dtype=torch.int8)
    weight = random_weight(packed, outputs, channels, 1, 1)
    for zero in (0, -128, 77):
        y = ops.matmul(levels, integers_of(weight, zero, packed), torch.float32)
        assert torch.equal(y.long(), (levels.long() - zero) @ weight[..., 0, 0].long().T)


def test_sums_are_split_where_a_product_leaves_most_of_a_gpu_idle():
    for rows, outputs, taps, stored in product((1, 64, 5000), (3, 1280), (1, 9), (16, 1280, 2560)):
        m, n, k = ops.SPLIT_BLOCKS.values()
        splits = ops.split_sums(rows, outputs, (taps, stored))
        programs, steps = -(-rows // m) * -(-outputs // n), taps * -(-stored // k)
        share = -(-steps // splits)
        # No split is empty, or so small that its sums cost more than they save.
        assert share * (splits - 1) < steps and (splits == 1 or share >= ops.WORTH)
        assert (splits > 1) == (2 * programs <= ops.ENOUGH and steps >= 2 * ops.WORTH)


WINDOWS = (
    (3, 5, ops.Window((3, 3), (1, 1), (1, 1))),
    (67, 19, ops.Window((3, 2), (2, 1), (1, 2))),
    (33, 17, ops.Window((1, 4), (1, 3), (1, 1))),
    (130, 4, ops.Window((5, 5), (2, 3), (2, 1))),
)


def padded_case(packed, channels, outputs, window, zero):
    """Return levels, a weight, and the convolution of their values in double precision."""
    levels = torch.randint(-128, 128, (2, 12, 11, channels), dtype=torch.int8)
    weight = random_weight(packed, outputs, channels, *window.kernel)
    values = (levels.double() - zero).movedim(-1, 1)
    wanted = F.conv2d(values, weight.double(), None, window.stride, 0, window.dilation)
    return levels, weight, wanted


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("channels", "outputs", "window"), WINDOWS)
def test_convolutions_are_exact(packed, channels, outputs, window):
    levels, weight, wanted = padded_case(packed, channels, outputs, window, -41)
    y = ops.conv2d(levels, integers_of(weight, -41, packed), torch.float32, window)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.double(), wanted)


@pytest.mark.parametrize(("channels", "outputs", "window"), WINDOWS)
def test_taps_made_channels_give_the_same_convolution(channels, outputs, window):
    levels, weight, wanted = padded_case(False, channels, outputs, window, 9)
    taps = weight.flatten(2).movedim(1, -1).flatten(1)
    width = taps.shape[1] + 5
    gathered = ops.gather_taps(levels, window, width)
    flat = F.pad(taps, (0, 5)).view(outputs, width, 1, 1)
    y = ops.conv2d(gathered, integers_of(flat, 9, False), torch.float32, ops.Window())
    assert gathered.is_contiguous() and torch.equal(y.double(), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 32, 9, 7), (1, 160, 13, 11), (3, 32, 50)])
def test_group_norms_are_torch_s(shape):
    norm = nn.GroupNorm(32, shape[1], eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # A mean far from zero costs digits when squares are summed.
    x = torch.randn(shape) + 10
    made = FusibleGroupNorm(norm)
    for laid in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        with torch.no_grad():
            assert sqnr(norm(x), made(laid)) > 80
    assert made(x.bfloat16()).dtype == torch.bfloat16


def test_configurations_suit_the_size_of_a_product():
    sizes = product((64, 2048, 2_000_000), (3, 64, 320), (16, 64, 1280), (False, True))
    for rows, outputs, channels, packed in sizes:
        facts = {"rows": rows, "outputs": outputs, "channels": channels}
        found = kernels.fitting(kernels.CONFIGS, facts, PACKED=packed)
        stored = channels // 2 if packed else channels
        assert 0 < len(found) <= kernels.TRIED
        for m, n, k in (
            config.kwargs.values() for config in found if found != kernels.CONFIGS[-1:]
        ):
            assert n < 2 * outputs and k < 2 * stored
            assert -(-rows // m) * -(-outputs // n) >= kernels.BUSY
    wide = {"rows": 2_000_000, "outputs": 512, "channels": 512}
    assert kernels.fitting(kernels.CONFIGS, wide, PACKED=False) == kernels.CONFIGS[: kernels.TRIED]


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-7), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_scale_and_bias_are_applied_in_single_precision(dtype, error):
    levels = torch.randint(-128, 128, (21, 50), dtype=torch.int8)
    weight, scale, bias = random_weight(False, 18, 50, 1, 1), torch.rand(18) * 1e-3, torch.randn(18)
    y = ops.matmul(levels, integers_of(weight, 9, False, scale, bias), dtype)
    sums = (levels.double() - 9) @ weight[..., 0, 0].double().T
    wanted = sums * scale.double() + bias.double()
    assert y.dtype == dtype
    assert (y.double() - wanted).abs().max() <= error * wanted.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("enough", [1, ops.ENOUGH])
def test_sums_as_large_as_the_longest_layer_s_do_not_overflow(monkeypatch, enough):
    monkeypatch.setattr(ops, "ENOUGH", enough)
    # Long blocks are faster here, since the interpreter then needs few.
    monkeypatch.setattr(ops, "block", lambda size, least, most: 16 if least == 16 else 2048)
    levels = torch.full((1, LONGEST), 127, dtype=torch.int8)
    weight = torch.full((1, LONGEST, 1, 1), 127, dtype=torch.int8)
    y = ops.matmul(levels, integers_of(weight, -128, False), torch.float32)
    assert abs(float(y) / (255 * 127 * LONGEST) - 1) < 1e-6


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from quantface_arch.runtime.cuda.kernels import affine_kernel, product_kernel, sums_kernel

def assembly(kernel, types, **constants):
    types = {name: "i32" for name in kernel.arg_names} | types
    types |= {name: "constexpr" for name in constants}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    source = ASTSource(kernel, types, constants, {})
    return compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]

tensors = dict(levels="*i8", weight="*i8", scale="*fp32", correction="*i32", bias="*fp32")
blocks = dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
for packed, taps, side, splits in ((True, 9, 3, 1), (False, 1, 1, 1), (False, 9, 3, 4)):
    y = "*bf16" if splits == 1 else "*i32"
    found = assembly(product_kernel.fn, tensors | {"y": y}, TAPS=taps, TAPS_W=side, PACKED=packed,
                     BIASED=True, SPLITS=splits, EVEN_K=True, **blocks)
    assert "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32" in found
types = dict(x="*bf16", sums="*fp32")
assembly(sums_kernel, types, BLOCK_R=16, BLOCK_C=128)
types = {name: "*fp32" for name in ("sums", "weight", "bias", "affine")} | {"epsilon": "fp32"}
for width in (2, 16):
    assembly(affine_kernel, types, BLOCK_P=64, BLOCK_C=width)
"""


@pytest.mark.slow
def test_kernels_compile_to_int8_tensor_core_instructions(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
