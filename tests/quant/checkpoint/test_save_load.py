"""Checkpoints: equal bit by bit after loading, small, and every kind of damage is named."""

from __future__ import annotations

import re

import pytest
import torch
from checkpoint_files import contents, rewrite
from quant_helpers import TinyNet, pictures
from safetensors.torch import save_file
from torch import nn

from quantface_arch import quant
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.packing import packed_size

ARCH = {"type": "TinyNet"}


def build(options):
    return {"TinyNet": TinyNet}[options["type"]]()


@pytest.fixture
def saved(tmp_path):
    model = TinyNet()
    quant.quantize(model, "w4a8", pictures(), progress=False)
    path = tmp_path / "model.safetensors"
    quant.save_checkpoint(model, path, ARCH, extra={"note": "x"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w6a6", "w5a3", "w3a4", "w2a2", "w7a7"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_loaded_model_equals_the_saved_one_bit_by_bit(tmp_path, name, symmetric):
    model, x, path = TinyNet().eval(), pictures(), tmp_path / "model.safetensors"
    weights = {"symmetric": symmetric, "granularity": "channel" if symmetric else "tensor"}
    recipe = quant.Recipe.from_dict({"name": name, "weights": weights, "eight_bit": ["conv_in"]})
    quant.quantize(model, recipe, x, progress=False)
    quant.save_checkpoint(model, path, ARCH)
    loaded = quant.load_checkpoint(path, build)
    assert torch.equal(loaded(x), model(x))
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = tmp_path / "again.safetensors"
    quant.save_checkpoint(loaded, again, ARCH)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_float_model_comes_back_rounded_to_the_stored_type(tmp_path, dtype):
    model, x, path = TinyNet().eval(), pictures(), tmp_path / "model.safetensors"
    quant.save_checkpoint(model, path, ARCH, dtype=dtype)
    loaded = quant.load_checkpoint(path, build)
    quant.round_float_parts(model, dtype)
    assert torch.equal(loaded(x), model(x))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert quant.read_metadata(path)["state"] == "float"
    size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    assert size < path.stat().st_size < size + 2000


def test_metadata_is_complete(saved):
    metadata = quant.read_metadata(saved)
    assert metadata["format_version"] == 1
    assert metadata["arch"] == ARCH
    assert metadata["state"] == "quantized"
    assert metadata["extra"] == {"note": "x"}
    assert metadata["bits"]["body"] == {"w": 4, "a": 8}
    assert quant.Recipe.from_dict(metadata["recipe"]) == quant.Recipe.from_name("w4a8")
    assert metadata["package_version"]


def test_a_four_bit_weight_takes_half_a_byte(saved):
    tensors, _ = contents(saved)
    for name, layer in TinyNet().named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            stored = tensors[f"{name}.weight"]
            assert stored.numel() == packed_size(layer.weight.numel(), 4)


def test_loading_skips_random_initialization(saved):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    quant.load_checkpoint(saved, build)
    assert torch.equal(torch.rand(1), expected)


def test_values_beyond_float16_survive(tmp_path):
    model, path = TinyNet(), tmp_path / "model.safetensors"
    model.norm.weight.data[0] = 1e6
    quant.save_checkpoint(model, path, ARCH)
    assert quant.load_checkpoint(path, build).norm.weight[0] == 1e6


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    def tied(_):
        model = TinyNet()
        model.again = model.body
        return model

    model, x, path = tied(None).eval(), pictures(), tmp_path / "model.safetensors"
    quant.quantize(model, "w4a8", x, progress=False)
    quant.save_checkpoint(model, path, ARCH)
    loaded = quant.load_checkpoint(path, tied)
    assert loaded.again is loaded.body
    assert torch.equal(loaded(x), model(x))
    assert not any(name.startswith("again") for name in contents(path)[0])


def test_only_a_calibrated_model_is_saved(tmp_path):
    model = TinyNet()
    quant.convert(model, quant.Recipe.from_name("w4a8"))
    with pytest.raises(QuantFaceError, match="layer conv_in: found state calibrating"):
        quant.save_checkpoint(model, tmp_path / "model.safetensors", ARCH)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_left_its_grid_is_named(tmp_path):
    model = TinyNet()
    quant.quantize(model, "w4a8", pictures(), progress=False)
    model.body.weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(QuantFaceError, match="layer body: its weight was changed"):
        quant.save_checkpoint(model, tmp_path / "model.safetensors", ARCH)


def test_options_that_are_no_plain_data_are_refused(tmp_path):
    with pytest.raises(QuantFaceError, match="plain data"):
        quant.save_checkpoint(TinyNet(), tmp_path / "m.safetensors", {"type": object()})


def test_asymmetric_weights_keep_their_zero_points(tmp_path):
    model, x, path = TinyNet().eval(), pictures(), tmp_path / "model.safetensors"
    quant.quantize(
        model,
        quant.Recipe(quant.QuantSpec(4, granularity="channel"), quant.QuantSpec(4)),
        x,
        progress=False,
    )
    quant.save_checkpoint(model, path, ARCH)
    tensors, metadata = contents(path)
    tensors["body.weight_zero_point"][0] = 16
    rewrite(path, tensors, metadata)
    with pytest.raises(QuantFaceError, match=r"body\.weight_zero_point: found a value above 15"):
        quant.load_checkpoint(path, build)


def damage_file(kind, path):
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        cut = {"empty": 0, "header cut": 50, "data cut": len(data) - 1}.get(kind)
        path.write_bytes(b"PK\3\4" * 100 if kind == "a zip" else data[:cut])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "empty", "header cut", "data cut", "a zip"])
@pytest.mark.parametrize(
    "read", [quant.read_metadata, lambda path: quant.load_checkpoint(path, build)]
)
def test_unreadable_files_are_named(saved, kind, read):
    damage_file(kind, saved)
    with pytest.raises(QuantFaceError, match=re.escape(str(saved))) as caught:
        read(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format_version: found 3, this package reads 1 and 2"),
        ({"format_version": None}, "format_version: found None"),
        ({"state": "frozen"}, "state: found 'frozen', allowed are float, quantized"),
        ({"arch": "TinyNet"}, "metadata arch: found 'TinyNet'"),
        ({"arch": {"type": "Other"}}, "arch: KeyError.*Other"),
        ({"bits": {}}, "bits: found 0 layers in state quantized"),
        ({"bits": {"body": {"w": 9, "a": 8}}}, "layer 'body': found .*from 2 to 8"),
        ({"bits": {"body": {"w": 4}}}, "layer 'body': found"),
        ({"bits": {"body": {"w": True, "a": 8}}}, "layer 'body': found"),
        ({"bits": {"head": {"w": 4, "a": 8}}}, "no layer 'head'"),
        ({"bits": {"norm": {"w": 4, "a": 8}}}, "layer 'norm' cannot be quantized"),
        ({"bits": {"body": {"w": 4, "a": 8}}}, "key "),
        ({"recipe": None}, "metadata recipe: found None"),
        ({"recipe": {"name": "w4a8", "x": 1}}, "unknown key x"),
    ],
)
def test_wrong_metadata_is_named(saved, change, message):
    tensors, metadata = contents(saved)
    # Layers that are balanced or branched have to be among those of the bit map.
    rewrite(saved, tensors, {**metadata, "balance": {}, "ranks": {}, **change})
    with pytest.raises(QuantFaceError, match=message) as caught:
        quant.load_checkpoint(saved, build)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_metadata_that_is_no_mapping_is_named(saved, text):
    tensors, _ = contents(saved)
    save_file(tensors, saved, metadata=None if text is None else {"quantface": text})
    with pytest.raises(QuantFaceError, match="quantface"):
        quant.read_metadata(saved)


CHANGES = {
    "conv_in.weight": ("not found", None),
    "norm.bias": ("not found", None),
    "activations": ("not found", None),
    "body.weight": ("found torch.uint8 \\(3,\\)", torch.zeros(3, dtype=torch.uint8)),
    "line.weight": ("found torch.int8", torch.zeros(128, dtype=torch.int8)),
    "linear.weight": ("above the grid's largest, 7", torch.full((128,), 255, dtype=torch.uint8)),
    "norm.weight": ("found torch.float16 \\(4, 4\\)", torch.ones(4, 4).half()),
    "body.bias": ("found torch.int32", torch.zeros(16, dtype=torch.int32)),
    "line.weight_scale": ("not positive and finite", torch.zeros(16)),
    "body.weight_scale": ("not positive and finite", torch.full((16,), torch.nan)),
    "head.weight": ("no such tensor", torch.zeros(3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGES)
def test_wrong_tensors_are_named(saved, key):
    message, value = CHANGES[key]
    tensors, metadata = contents(saved)
    tensors = {**tensors, key: value} if value is not None else tensors
    if value is None:
        del tensors[key]
    rewrite(saved, tensors, metadata)
    with pytest.raises(QuantFaceError, match=rf"key {re.escape(key)}: .*{message}") as caught:
        quant.load_checkpoint(saved, build)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"), [(0, 0.0), (0, torch.inf), (1, 0.5), (1, 256.0), (2, 1e9), (3, torch.nan)]
)
def test_wrong_activation_grids_name_the_layer(saved, column, value):
    tensors, metadata = contents(saved)
    tensors["activations"][1, column] = value
    rewrite(saved, tensors, metadata)
    with pytest.raises(QuantFaceError, match="activations: layer body: found"):
        quant.load_checkpoint(saved, build)


def test_a_loaded_model_is_ready_and_carries_its_recipe(saved):
    model = quant.load_checkpoint(saved, build)
    assert not model.training
    assert model.quant_recipe == quant.Recipe.from_name("w4a8")
    assert all(layer.state is quant.State.QUANTIZED for layer in quant.quant_layers(model))
