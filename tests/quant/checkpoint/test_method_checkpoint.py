"""Balanced, branched models of mixed widths: equal after loading, and damage is named."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from checkpoint_files import contents, rewrite
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    LayerBalance,
    Recipe,
    convert,
    fold_trained,
    load_checkpoint,
    quant_layers,
    quantize,
    read_metadata,
    round_float_parts,
    save_checkpoint,
    trainable,
)

ARCH = {"type": "TinyNet"}
BITS = {"conv_in": (8, 8), "body": (3, 6), "linear": (4, 3), "line": (5, 5), "conv_out": (6, 4)}
BRANCH = {"svd": 1, "distill": 1, "ranks": {"linear": [2, 2]}, "budget": 1}


class Wide(TinyNet):
    """TinyNet whose second convolution is wide enough for two groups to be rotated."""

    def __init__(self):
        super().__init__(64)


def build(options):
    return {"TinyNet": TinyNet, "Wide": Wide}[options["type"]]()


def recipe_of(kind, **balance):
    options = {"name": "w4a4", "balance": {"kind": kind, **balance}, "branch": BRANCH}
    return Recipe.from_dict(options)


def method_model(kind="both", net=TinyNet, **balance):
    model = net().eval()
    quantize(model, recipe_of(kind, **balance), pictures(), progress=False, bits=BITS)
    return model


def assert_equal_states(first, second):
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(method_model(), path, ARCH)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both", "auto"])
@pytest.mark.parametrize("net", [TinyNet, Wide])
def test_a_loaded_model_equals_the_saved_one_bit_by_bit(tmp_path, kind, net):
    model, x, path = method_model(kind, net), pictures(), tmp_path / "model.safetensors"
    found = {layer.name: layer.balance.kind for layer in quant_layers(model)}
    if kind != "auto":
        assert found["linear"] == kind
        assert found["conv_in"] == "none"
        if net is Wide:
            assert found["body"] == kind
    save_checkpoint(model, path, {"type": net.__name__})
    loaded = load_checkpoint(path, build)
    assert torch.equal(loaded(x), model(x))
    assert_equal_states(model, loaded)
    for one, other in zip(quant_layers(model), quant_layers(loaded), strict=True):
        assert one.balance.to_dict() == other.balance.to_dict()
        assert one.rank == other.rank
        assert BITS[one.name] == (other.weight_spec.bits, other.activation_spec.bits)
    again = tmp_path / "again.safetensors"
    save_checkpoint(loaded, again, {"type": net.__name__})
    assert again.read_bytes() == path.read_bytes()


def test_blocks_survive(tmp_path):
    model, x = method_model("rotate", Wide, block=16), pictures()
    assert model.linear.balance.segments == ((4, 16),)
    save_checkpoint(model, tmp_path / "m.safetensors", {"type": "Wide"})
    loaded = load_checkpoint(tmp_path / "m.safetensors", build)
    assert loaded.linear.balance.segments == ((4, 16),)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_trained_model_equals_the_saved_one_once_rounded(tmp_path, dtype):
    model, x, path = method_model(), pictures(), tmp_path / "model.safetensors"
    optimizer = torch.optim.Adam(trainable(model, bounds=True), lr=1e-2)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    fold_trained(model)
    round_float_parts(model, dtype)
    save_checkpoint(model, path, ARCH, dtype=dtype)
    loaded = load_checkpoint(path, build)
    assert torch.equal(loaded(x), model(x))
    assert_equal_states(model, loaded)
    assert contents(path)[0]["linear.branch_down"].dtype == dtype


def test_metadata_tells_balance_and_ranks(saved):
    metadata = read_metadata(saved)
    assert metadata["bits"]["body"] == {"w": 3, "a": 6}
    # Grouped layers, those at 8 bits and those too small for the cap have no branch.
    assert metadata["ranks"] == {"linear": 4, "line": 2}
    assert metadata["balance"]["linear"]["segments"] == [[1, 16]]
    assert metadata["balance"]["linear"]["scaled"] is True
    assert "conv_in" not in metadata["balance"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both"])
@pytest.mark.parametrize("net", [TinyNet, Wide])
def test_a_state_dict_loads_into_a_freshly_converted_model(tmp_path, kind, net):
    model, x, fresh = method_model(kind, net), pictures(), net().eval()
    convert(fresh, recipe_of("none"), BITS)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert_equal_states(model, fresh)
    # What it then saves is what the first would have saved, as a model.
    save_checkpoint(fresh, tmp_path / "m.safetensors", {"type": net.__name__})
    assert torch.equal(load_checkpoint(tmp_path / "m.safetensors", build)(x), model(x))
    # Over a balanced, branched and trained model a plain state loads as well.
    plain = net().eval()
    quantize(plain, "w4a4", x, progress=False, bits=BITS, balance=nothing(plain))
    trainable(fresh, bounds=True)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(x), plain(x))


def nothing(model):
    converted = copy.deepcopy(model)
    convert(converted, recipe_of("none"))
    return {layer.name: LayerBalance() for layer in quant_layers(converted)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "layer", "value", "message"),
    [
        (
            "balance",
            "linear",
            {"segments": [[1, 8]], "seed": 0, "scaled": True},
            "linear: found balancing for",
        ),
        (
            "balance",
            "linear",
            {"segments": [[1, 17]], "seed": 0, "scaled": True},
            "linear: found balancing for",
        ),
        (
            "balance",
            "linear",
            {"segments": [[1]], "seed": 0, "scaled": True},
            "balance of layer 'linear'",
        ),
        (
            "balance",
            "linear",
            {"segments": [[1, -16]], "seed": 0, "scaled": True},
            "balance of layer 'linear'",
        ),
        (
            "balance",
            "linear",
            {"segments": [[1, 16]], "seed": None, "scaled": True},
            "balance of layer 'linear'",
        ),
        ("balance", "linear", {"segments": [[1, 16]]}, "balance of layer 'linear'"),
        ("balance", "linear", 7, "balance of layer 'linear'"),
        (
            "balance",
            "body",
            {"segments": [[1, 16]], "seed": 0, "scaled": True},
            "body: found blocks",
        ),
        ("balance", "head", {"segments": [], "seed": 0}, "balance: found layers that are not"),
        ("ranks", "linear", 17, "ranks of layer 'linear': found 17, allowed are at most 16"),
        ("ranks", "body", 1, "ranks of layer 'body': found 1, allowed are at most 0"),
        ("ranks", "linear", 3, r"linear\.branch_down: found .*\(4, 16\), expected .*\(3, 16\)"),
        ("ranks", "linear", 0, "ranks of layer 'linear': found 0"),
        ("ranks", "linear", 1.5, "ranks of layer 'linear': found 1.5"),
        ("ranks", "head", 1, "ranks: found layers that are not"),
    ],
)
def test_wrong_metadata_is_named(saved, part, layer, value, message):
    tensors, metadata = contents(saved)
    metadata[part] = {**metadata[part], layer: value}
    rewrite(saved, tensors, metadata)
    with pytest.raises(QuantFaceError, match=message) as caught:
        load_checkpoint(saved, build)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("part", ["balance", "ranks"])
def test_tensors_that_the_metadata_does_not_tell_are_named(saved, part):
    tensors, metadata = contents(saved)
    del metadata[part]["linear"]
    rewrite(saved, tensors, metadata)
    with pytest.raises(QuantFaceError, match=r"key linear\.(balance_scale|branch_)"):
        load_checkpoint(saved, build)


def test_an_order_that_does_not_exist_is_named(tmp_path):
    class Odd(TinyNet):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Sequential(torch.nn.Linear(16, 36), torch.nn.Linear(36, 16))

    model, path = Odd().eval(), tmp_path / "model.safetensors"
    quantize(model, "w4a4", pictures(), progress=False)
    save_checkpoint(model, path, ARCH)
    tensors, metadata = contents(path)
    scaled = "linear.1.balance_scale" in tensors
    metadata["balance"]["linear.1"] = {"segments": [[1, 36]], "seed": 0, "scaled": scaled}
    rewrite(path, tensors, metadata)
    with pytest.raises(
        QuantFaceError, match=r"layer linear\.1: there is no Hadamard order 36"
    ) as e:
        load_checkpoint(path, lambda _: Odd())
    assert str(path) in str(e.value)


CHANGES = {
    "linear.balance_scale": [
        (None, "scale missing"),
        (torch.ones(17), r"found torch.float32 \(17,\)"),
        (torch.ones(16).half(), "found torch.float16"),
        (torch.zeros(16), "not positive and finite"),
        (-torch.ones(16), "not positive and finite"),
        (torch.full((16,), torch.inf), "not positive and finite"),
    ],
    "conv_in.balance_scale": [(torch.ones(3), "the layer is not balanced")],
    "linear.branch_up": [
        (None, "not found"),
        (torch.zeros(16, 5).half(), r"found torch.float16 \(16, 5\)"),
        (torch.zeros(16, 4, dtype=torch.int8), "found torch.int8"),
    ],
    "body.branch_up": [(torch.zeros(16, 1).half(), "no such tensor")],
    "linear.act_bounds": [(torch.zeros(2), "no such tensor")],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"), [(key, *change) for key in CHANGES for change in CHANGES[key]]
)
def test_wrong_tensors_are_named(saved, key, value, message):
    tensors, metadata = contents(saved)
    tensors = {**tensors, key: value} if value is not None else tensors
    if value is None:
        del tensors[key]
    rewrite(saved, tensors, metadata)
    with pytest.raises(QuantFaceError, match=message) as caught:
        load_checkpoint(saved, build)
    assert str(saved) in str(caught.value)
    assert re.escape(key.partition(".")[0]) in str(caught.value)
