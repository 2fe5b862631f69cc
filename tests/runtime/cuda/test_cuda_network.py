"""Layers and networks of the CUDA runtime, on the CPU."""

from __future__ import annotations

import sys
import warnings
from itertools import product

import interpreted_kernels  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from quant_helpers import TinyNet, far_from_zero, pictures, quantized_layers, sqnr
from torch import nn

from quantface_arch import runtime
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import Recipe, load_checkpoint, quant_layers, quantize, save_checkpoint
from quantface_arch.runtime import cuda
from quantface_arch.runtime.cuda.graph import GraphedPart, keep_layout
from quantface_arch.runtime.cuda.layer import CudaLayer, obstacle
from quantface_arch.runtime.cuda.network import load_network
from quantface_arch.runtime.cuda.norm import FusibleGroupNorm
from quantface_arch.runtime.lowering import LoweredLayer, Lowering

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

BRANCH = {"svd": 1, "distill": 1, "budget": 1}
CPU = torch.device("cpu")


class Net(nn.Module):
    """Layers of every type and of odd geometries, wide enough to be rotated where needed."""

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both"])
@pytest.mark.parametrize("name", ["w3a3", "w4a6", "w5a8", "w4a8"])
def test_layers_compute_what_lowered_layers_compute(kind, name):
    for (layer, x), mode in product(layers_of(kind, name), ("faithful", "folded")):
        lowered = Lowering(mode)(layer)
        assert obstacle(lowered) is None
        made = CudaLayer(lowered)
        assert made.packed is (mode == "faithful" and layer.weight_spec.bits <= 4)
        with torch.no_grad():
            wanted, found = lowered(x), made(x)
            assert found.shape == wanted.shape and sqnr(wanted, found) > 60, layer.name


def test_layers_take_a_single_input_without_a_batch():
    for layer, x in layers_of("both", "w4a4"):
        lowered = Lowering("faithful")(layer)
        with torch.no_grad():
            wanted, found = lowered(x[0]), CudaLayer(lowered)(x[0])
        assert found.shape == wanted.shape and sqnr(wanted, found) > 60, layer.name


def test_padding_is_zero_where_a_channel_has_no_level_for_zero():
    layer, x = far_from_zero()
    lowered = Lowering("faithful")(layer)
    assert obstacle(lowered) is None
    with torch.no_grad():
        assert sqnr(layer(x), CudaLayer(lowered)(x)) > 60


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
    """Return a checkpoint with every layer type, one of them grouped, and its builder."""
    model, path = TinyNet().eval(), tmp_path / "net.safetensors"
    recipe = {"name": "w4a8", "balance": {"kind": "scale"}, "branch": BRANCH}
    quantize(model, Recipe.from_dict(recipe), pictures(), progress=False)
    save_checkpoint(model, path, {"type": "any"})
    return path, lambda _: TinyNet()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 45), (torch.bfloat16, 25)])
def test_a_network_follows_and_names_what_is_left_to_torch(net, dtype, distance):
    with pytest.warns(UserWarning, match=r"net.safetensors: layers .*: body \(2 groups\)$"):
        found = load_network(*net, "faithful", CPU, dtype)
    x = pictures(2)
    with torch.inference_mode():
        y = found(x)
        assert y.dtype == torch.float32 and sqnr(load_checkpoint(*net)(x), y) > distance
        assert not y.is_inference()
    # Norms and scales keep their type.
    assert isinstance(found.norm, FusibleGroupNorm) and found.norm.weight.dtype == torch.float32
    assert found.conv_in.scale.dtype == torch.float32
    assert sum(isinstance(module, CudaLayer) for module in found.modules()) == 4
    assert sum(isinstance(module, LoweredLayer) for module in found.modules()) == 1


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"scale_factor": 2.0, "mode": "nearest"}, 0),
        ({"scale_factor": 2.0, "mode": "bilinear"}, 1),
        ({"scale_factor": 3.0, "mode": "nearest"}, 1),
        ({"size": (8, 6), "mode": "nearest"}, 1),
    ],
)
def test_doubling_stays_channels_last(options, kept):
    left = []

    def backend(graph, inputs):
        keep_layout(graph)
        left.append(len(graph.graph.find_nodes(op="call_function", target=F.interpolate)))
        return graph.forward

    x = torch.rand(2, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    found = torch.compile(lambda x: F.interpolate(x, **options), backend=backend)(x)
    assert torch.equal(found, F.interpolate(x, **options)) and left == [kept]
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_part_whose_capture_fails_runs_all_the_same_and_is_named():
    if torch.cuda.is_available():
        pytest.skip("here it succeeds")
    part = GraphedPart("decode", lambda x, y: (x, x @ y), torch.float32, graphed=True)
    x = torch.ones(2, 2)
    with pytest.warns(UserWarning, match="part decode: it could not be compiled as a CUDA graph"):
        same, squared = part(x, x)
    assert torch.equal(same, x) and torch.equal(squared, x @ x)
    # The caller owns this tensor: it must not change when the part runs again.
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
