"""Exported files: the reference's images, integers inside, and complete or absent."""

from __future__ import annotations

from collections import Counter
from statistics import median

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper
from programs import run_program
from quant_helpers import sqnr
from small_networks import RRDB, TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import Recipe, load_checkpoint, quant_layers, quantize, save_checkpoint
from quantface_arch.runtime.processor import has_vnni

RUNTIMES = ("reference", "openvino")


def psnr(found, expected):
    """Return the PSNR of images in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / (found - expected).square().mean()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a checkpoint of a plain network, W4A8 with branches."""
    torch.manual_seed(1)
    net, path = build_arch(RRDB).eval(), tmp_path_factory.mktemp("plain") / "net.safetensors"
    recipe = {"name": "w4a8", "balance": {"kind": "scale"}, "branch": {"svd": 1, "budget": 1}}
    quantize(net, Recipe.from_dict(recipe), torch.rand(2, 3, 64, 64), progress=False)
    save_checkpoint(net, path, RRDB)
    return path


def export(repo, *words):
    return run_program(repo / "scripts/export.py", *words)


def exported(repo, path, target, *words):
    kind = {".onnx": "onnx", ".xml": "openvino"}[target.suffix]
    done = export(repo, "--model", path, "--format", kind, "-o", target, *words)
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    return target


def run_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["restored"], {"degraded": x.numpy()})[0])


def run_openvino(path):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0])


def assert_equal_for_all_sizes(reference, found):
    # Another order of sums may tip a value to the next level, which changes everything after it in
    # that image. Images without such a value are exact.
    for shape in ((7, 3, 32, 32), (5, 3, 32, 48)):
        x = torch.rand(shape)
        with torch.no_grad():
            pairs = zip(reference(x), found(x), strict=True)
            assert median(sqnr(*pair) for pair in pairs) > 60


def assert_integers(target, layers):
    """Assert that layers multiply int8 weights by rounded inputs, and no float weight is left."""
    graph = onnx.load(target).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def maker(name):
        node = makers.get(name)
        return maker(node.input[0]) if node is not None and node.op_type == "Transpose" else node

    weights = []
    for node in graph.node:
        made = maker(node.input[1]) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        if made is not None and made.op_type == "DequantizeLinear" and made.input[0] in stored:
            weights.append(stored[made.input[0]])
            assert maker(node.input[0]).op_type == "DequantizeLinear", node.name
    assert len(weights) == layers and all(tensor.data_type == tensor.INT8 for tensor in weights)
    floats = [tensor for tensor in stored.values() if tensor.data_type == tensor.FLOAT]
    assert max(np.prod(x.dims) for x in floats) < max(np.prod(x.dims) for x in weights)


def optimized(target, folder):
    """Return the graph that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(target, options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def largest_weight(target):
    """Return the largest integer of all int8 weights."""
    stored = onnx.load(target).graph.initializer
    weights = [numpy_helper.to_array(x) for x in stored if x.data_type == x.INT8]
    return max(int(np.abs(weight).max()) for weight in weights)


@pytest.mark.slow
def test_onnx_runtime_computes_what_the_reference_does(repo, plain, tmp_path):
    target = exported(repo, plain, tmp_path / "net.onnx", "--mode", "faithful")
    reference = load_checkpoint(plain, build_arch)
    assert_equal_for_all_sizes(reference, run_onnx(target))
    assert_integers(target, len(list(quant_layers(reference))))


@pytest.mark.slow
def test_onnx_runtime_keeps_zero_points_of_channels(repo, tmp_path):
    net, path = build_arch(RRDB).eval(), tmp_path / "net.safetensors"
    recipe = {"name": "w4a6", "activations": {"zero_points": "channel"}}
    quantize(net, Recipe.from_dict(recipe), torch.rand(2, 3, 64, 64), progress=False)
    save_checkpoint(net, path, RRDB)
    target = exported(repo, path, tmp_path / "net.onnx", "--mode", "faithful")
    assert_equal_for_all_sizes(net, run_onnx(target))
    assert_integers(target, len(list(quant_layers(net))))


@pytest.mark.slow
def test_onnx_runtime_restores_faces(repo, aligned_face, tmp_path):
    # Use no more bits than this processor can add without overflowing.
    bits = 8 if has_vnni() else 7
    target = exported(repo, "mini-w4a8", tmp_path / "mini.onnx", "--weight-bits", bits)
    assert largest_weight(target) == 2 ** (bits - 1) - 1
    reference, compiled = (load_model("mini-w4a8", runtime=name) for name in RUNTIMES)
    x = torch.tensor(aligned_face).permute(2, 0, 1)[None, :, 128:384, 96:416].float() / 127.5 - 1
    with torch.no_grad():
        expected = reference(x)
    distances = [psnr(network(x), expected) for network in (run_onnx(target), compiled)]
    assert distances[0] > 38 and distances[0] > distances[1] - 1
    layers = [layer for layer in quant_layers(reference) if "time_emb" not in layer.name]
    assert_integers(target, len(layers))
    kinds = optimized(target, tmp_path)
    assert kinds["MatMulIntegerToFloat"] >= 0.9 * len(layers)


@pytest.mark.slow
def test_weights_of_seven_bits_leave_room_to_add_pairs(repo, plain, tmp_path):
    target = exported(repo, plain, tmp_path / "net.onnx", "--weight-bits", 7)
    assert largest_weight(target) == 63
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert sqnr(load_checkpoint(plain, build_arch)(x), run_onnx(target)(x)) > 25


@pytest.mark.slow
def test_folded_files_have_no_branches(repo, plain, tmp_path):
    target, x = exported(repo, plain, tmp_path / "net.onnx"), torch.rand(1, 3, 32, 32)
    reference = load_checkpoint(plain, build_arch)
    with torch.no_grad():
        assert sqnr(reference(x), run_onnx(target)(x)) > 25
    products = [node for node in onnx.load(target).graph.node if node.op_type == "MatMul"]
    assert len(products) == len(list(quant_layers(reference)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_sizes_that_the_reference_refuses_are_refused_with_what_is_allowed(repo, tmp_path, name):
    torch.manual_seed(2)
    net, path = build_arch(TINY).eval(), tmp_path / "net.safetensors"
    save_checkpoint(net, path, TINY)
    run = {".onnx": run_onnx, ".xml": run_openvino}
    target = exported(repo, path, tmp_path / name)
    reference, found = load_checkpoint(path, build_arch), run[target.suffix](target)
    for height, width in ((64, 64), (96, 64), (64, 160)):
        x = torch.rand(1, 3, height, width) * 2 - 1
        with torch.no_grad():
            assert sqnr(reference(x), found(x)) > 40
    for height, width in ((100, 100), (48, 32), (32, 40), (33, 32), (16, 16)):
        x = torch.rand(1, 3, height, width)
        with pytest.raises(QuantFaceError, match="multiples of 32"):
            reference(x)
        with pytest.raises(Exception, match="both_sides_must_be_multiples_of_32"):
            found(x)


@pytest.mark.slow
def test_openvino_reads_the_file_of_a_whole_network(repo, plain, tmp_path):
    target = exported(repo, plain, tmp_path / "net.xml", "--way", "faithful")
    assert_equal_for_all_sizes(load_checkpoint(plain, build_arch), run_openvino(target))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.xml"]


def test_what_is_wrong_is_named_and_nothing_is_written(load_script, run_script, tmp_path):
    script, model = load_script("export"), ["--model", "mini-w4a8", "--format"]
    for words, message in (
        ([*model, "onnx", "-o", tmp_path / "a.xml"], "expected a name that ends in .onnx"),
        ([*model, "tflite", "-o", tmp_path / "a.onnx"], "invalid choice: 'tflite'"),
        (
            ["--model", tmp_path, "--format", "onnx", "-o", tmp_path / "a.onnx"],
            "expected a checkpoint",
        ),
        (["--model", "none", "--format", "onnx", "-o", tmp_path / "a.onnx"], "model 'none'"),
    ):
        status, _, errors = run_script(script, *words)
        assert status != 0 and message in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
