"""The runtime cuda: its kernels in Triton's interpreter on the CPU, and as they are compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from itertools import product
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from quant_helpers import TinyNet, pictures, quantized_layers, sqnr
from torch import nn

from quantface_arch import runtime
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import Recipe, load_checkpoint, quant_layers, quantize, save_checkpoint
from quantface_arch.quant.quantizer import grid
from quantface_arch.runtime import cuda
from quantface_arch.runtime.lowering import Lowering

pytest.importorskip("triton")
# Read when kernels are decorated, and by nothing later: other tests do not see it.
with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
    from quantface_arch.runtime.cuda import kernels, ops
from quantface_arch.runtime.cuda.graph import GraphedPart
from quantface_arch.runtime.cuda.layer import LONGEST, CudaLayer, obstacle
from quantface_arch.runtime.cuda.network import load_network
from quantface_arch.runtime.cuda.norm import FusibleGroupNorm
from quantface_arch.runtime.lowering import LoweredLayer

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

BRANCH = {"svd": 1, "distill": 1, "budget": 1}
CPU = torch.device("cpu")


class Net(nn.Module):
    """A layer of every type and of odd geometries, those that must be wide enough to be rotated."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.point = nn.Conv2d(32, 32, 1, bias=False)
        self.linear = nn.Linear(32, 32)
        self.line = nn.Conv1d(32, 16, 4, padding="same", bias=False)
        self.dot = nn.Conv1d(16, 17, 1)

    def forward(self, x):
        h = self.linear(self.point(self.conv(x)).movedim(1, -1)).movedim(-1, 1)
        return self.dot(self.line(h.flatten(2)))


def layers_of(kind, name, **options):
    return quantized_layers(Net(), (16, 6, 5), kind, name, **options)


def integers_of(weight, zero, packed, scale=None, bias=None):
    """Of a weight (Cout, Cin, kh, kw); scales of one give the very sums."""
    flat = weight.flatten(2).movedim(1, -1).contiguous()
    stored = ops.pack_nibbles(flat) if packed else flat
    scale = torch.ones(len(weight)) if scale is None else scale
    correction = flat.sum((1, 2), dtype=torch.int32) * zero
    return ops.Integers(stored, packed, scale, correction, bias)


def random_weight(packed, *shape):
    low, high = ops.NIBBLE if packed else (-128, 127)
    return torch.randint(low, high + 1, shape, dtype=torch.int8)


def assert_rounded_as_by_torch(x, multiplier, step, zero, bits, symmetric):
    """x is (N, C, H, W)."""
    low, high = grid(bits, symmetric)
    offset = 0 if symmetric else 128
    factor = 1 if multiplier is None else multiplier.view(-1, 1, 1)
    wanted = torch.fake_quantize_per_tensor_affine(x.float() * factor, step, zero, low, high)
    stored = (torch.tensor(zero - offset).float(), low - offset, high - offset)
    levels = ops.quantize(x, 1, multiplier, torch.tensor(step).reciprocal(), *stored)
    values = (levels.float() + offset - zero) * torch.tensor(step)
    assert levels.is_contiguous() and torch.equal(values, wanted.movedim(1, -1))


def ties_and_others(step, high):
    """Values in the middle between two levels, and others far beyond the grid."""
    ties = (torch.arange(-300, 300) / 2 * step).view(1, 6, 5, 20)
    return torch.cat((ties, torch.randn(1, 33, 5, 20) * step * high), 1)


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_rounding_is_torch_s_fake_quantization_bit_by_bit(bits, symmetric, balanced):
    high = grid(bits, symmetric)[1]
    multiplier = torch.rand(39) * 4 - 2 if balanced else None
    # Steps with and without an exact reciprocal.
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
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 37, 19), (130, 64, 129), (17, 200, 3)])
def test_matrix_products_are_exact_for_all_sizes(packed, shape):
    rows, channels, outputs = shape
    levels = torch.randint(-128, 128, (rows, channels), dtype=torch.int8)
    weight = random_weight(packed, outputs, channels, 1, 1)
    for zero in (0, -128, 77):
        y = ops.matmul(levels, integers_of(weight, zero, packed), torch.float32)
        assert torch.equal(y.long(), (levels.long() - zero) @ weight[..., 0, 0].long().T)


WINDOWS = (
    (3, 5, ops.Window((3, 3), (1, 1), (1, 1))),
    (67, 19, ops.Window((3, 2), (2, 1), (1, 2))),
    (33, 17, ops.Window((1, 4), (1, 3), (1, 1))),
    (130, 4, ops.Window((5, 5), (2, 3), (2, 1))),
)


def padded_case(packed, channels, outputs, window, zero):
    """Levels, a weight, and the convolution of their values in double precision."""
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


@pytest.mark.parametrize("bits", [4, 8])
def test_convolutions_of_few_channels_pad_by_the_value_zero(bits):
    for padding in (1, (2, 0), "same"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding))
        x = torch.rand(2, 3, 7, 6) + 0.5
        quantize(model, f"w{bits}a{bits}", x, progress=False)
        lowered = Lowering("faithful")(next(quant_layers(model)))
        made = CudaLayer(lowered)
        with torch.no_grad():
            wanted, found = lowered(x), made(x)
        assert made.gathered and not made.packed
        assert found.shape == wanted.shape and sqnr(wanted, found) > 60


@pytest.mark.parametrize("shape", [(2, 32, 9, 7), (1, 160, 41, 40), (3, 32, 50)])
def test_group_norms_are_torch_s(shape):
    norm = nn.GroupNorm(32, shape[1], eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # A mean far from zero costs digits where squares are added up.
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


def test_sums_as_large_as_the_longest_layer_s_do_not_overflow(monkeypatch):
    # Long blocks, of which the interpreter needs few.
    monkeypatch.setattr(ops, "_block", lambda size, least, most: 16 if least == 16 else 2048)
    levels = torch.full((1, LONGEST), 127, dtype=torch.int8)
    weight = torch.full((1, LONGEST, 1, 1), 127, dtype=torch.int8)
    y = ops.matmul(levels, integers_of(weight, -128, False), torch.float32)
    assert abs(float(y) / (255 * 127 * LONGEST) - 1) < 1e-6


@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both"])
@pytest.mark.parametrize("name", ["w3a3", "w4a6", "w5a8", "w4a8"])
def test_layers_compute_what_lowered_layers_compute(kind, name):
    for (layer, x), way in product(layers_of(kind, name), ("faithful", "folded")):
        lowered = Lowering(way)(layer)
        assert obstacle(lowered) is None
        made = CudaLayer(lowered)
        assert made.packed is (way == "faithful" and layer.weight_spec.bits <= 4)
        with torch.no_grad():
            wanted, found = lowered(x), made(x)
            assert found.shape == wanted.shape and sqnr(wanted, found) > 60, layer.name


def test_layers_take_a_single_input_without_a_batch():
    for layer, x in layers_of("both", "w4a4"):
        lowered = Lowering("faithful")(layer)
        with torch.no_grad():
            wanted, found = lowered(x[0]), CudaLayer(lowered)(x[0])
        assert found.shape == wanted.shape and sqnr(wanted, found) > 60, layer.name


@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_of_both_kinds_are_kept(symmetric):
    both = {"symmetric": symmetric}
    for name in ("w4a4", "w8a8"):
        for layer, x in layers_of("none", name, activations=both, weights=both):
            lowered = Lowering("faithful")(layer)
            with torch.no_grad():
                assert sqnr(lowered(3 * x), CudaLayer(lowered)(3 * x)) > 60, layer.name


def test_a_layer_keeps_its_weight_once_and_packed():
    for layer, _ in layers_of("both", "w4a4"):
        made = CudaLayer(Lowering("faithful")(layer), torch.bfloat16)
        if layer.weight_spec.bits == 4:
            assert made.weight.numel() == layer.weight.numel() // 2
        assert made.weight.dtype == torch.int8 and made.scale.dtype == torch.float32
        assert not list(made.parameters())


@pytest.fixture
def net(tmp_path):
    """A checkpoint of every layer type, one of them grouped, and how to build it."""
    model, path = TinyNet().eval(), tmp_path / "net.safetensors"
    recipe = {"name": "w4a8", "balance": {"kind": "scale"}, "branch": BRANCH}
    quantize(model, Recipe.from_dict(recipe), pictures(), progress=False)
    save_checkpoint(model, path, {"type": "any"})
    return path, lambda _: TinyNet()


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 45), (torch.bfloat16, 25)])
def test_a_network_follows_and_names_what_is_left_to_torch(net, dtype, distance):
    with pytest.warns(UserWarning, match=r"net.safetensors: layers .*: body \(2 groups\)$"):
        found = load_network(*net, "faithful", CPU, dtype)
    x = pictures(2)
    with torch.inference_mode():
        y = found(x)
        assert y.dtype == torch.float32 and sqnr(load_checkpoint(*net)(x), y) > distance
        assert not y.is_inference()
    # Norms and steps stay as they are.
    assert isinstance(found.norm, FusibleGroupNorm) and found.norm.weight.dtype == torch.float32
    assert found.conv_in.scale.dtype == torch.float32
    assert sum(isinstance(module, CudaLayer) for module in found.modules()) == 4
    assert sum(isinstance(module, LoweredLayer) for module in found.modules()) == 1


def test_every_obstacle_is_named():
    for layer, x, said in (
        (
            nn.Conv2d(3, 4, 3, padding_mode="reflect"),
            torch.rand(1, 3, 8, 8),
            "padding mode reflect",
        ),
        (nn.Conv2d(3, 3, 3, groups=3), torch.rand(1, 3, 8, 8), "3 groups"),
        (nn.Linear(70_000, 1), torch.rand(1, 3, 1, 70_000), "sums of more than 65793 products"),
    ):
        model = nn.Sequential(layer)
        quantize(model, "w4a8", x, progress=False)
        assert obstacle(Lowering()(next(quant_layers(model)))) == said


def test_a_part_whose_capture_fails_runs_all_the_same_and_is_named():
    if torch.cuda.is_available():
        pytest.skip("here it succeeds")
    part = GraphedPart("decode", lambda x, y: (x, x @ y), torch.float32, graphed=True)
    x = torch.ones(2, 2)
    with pytest.warns(UserWarning, match="part decode: it could not be compiled as a CUDA graph"):
        same, squared = part(x, x)
    assert torch.equal(same, x) and torch.equal(squared, x @ x)
    # The caller's own, that is to stay when the part runs again.
    assert same.data_ptr() != x.data_ptr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part(x, x)


def test_what_is_missing_is_said_and_auto_does_not_take_it():
    assert runtime.resolve("auto", "cuda") == "reference"
    if torch.cuda.is_available():
        pytest.skip("nothing is missing here")
    assert "NVIDIA GPU of compute capability 8.0" in cuda.missing()
    for device in ("cpu", "cuda"):
        with pytest.raises(QuantFaceError, match=r"runtime cuda: not available here; it needs an"):
            runtime.resolve("cuda", device)


def test_without_triton_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cuda.missing() == "pip install triton"


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from quantface_arch.runtime.cuda.kernels import product_kernel, sums_kernel

def assembly(kernel, types, numbers, **constants):
    types = {name: "i32" for name in kernel.arg_names} | types
    # Triton makes arguments of 1 constants, so that code for them is another.
    constants |= {name: 1 for name in numbers}
    types |= {name: "constexpr" for name in constants}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    source = ASTSource(kernel, types, constants, {})
    return compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]

tensors = dict(levels="*i8", weight="*i8", scale="*fp32", correction="*i32", bias="*fp32")
blocks = dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
ones = ("height", "width", "out_height", "out_width", "stride_h", "stride_w", "dilation_h",
        "dilation_w")
for packed, taps, side, numbers in ((True, 9, 3, ()), (False, 1, 1, ones)):
    found = assembly(product_kernel.fn, tensors | {"y": "*bf16"}, numbers, TAPS=taps,
                     TAPS_W=side, PACKED=packed, BIASED=True, EVEN_K=True, **blocks)
    assert "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32" in found
types = dict(x="*bf16", sums="*fp32")
assembly(sums_kernel, types, (), BLOCK_R=16, BLOCK_C=128)
"""


def test_kernels_compile_to_int8_tensor_core_instructions(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
