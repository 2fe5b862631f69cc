"""Balancing: the float output stays, whatever the layer; plans survive a file, or are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, converted_net, pictures
from safetensors.torch import save_file
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    LayerBalance,
    Recipe,
    State,
    balance_stage,
    convert,
    load_balance,
    quant_layers,
    save_balance,
)
from quantface_arch.quant.ops.balance import REACH, channel_scale
from quantface_arch.quant.ops.hadamard import segments_of
from quantface_arch.quant.ptq import apply_plan, prepare

KINDS = ("scale", "rotate", "both")
GEOMETRIES = {
    "linear": (nn.Linear, {}),
    "conv1d": (nn.Conv1d, {"kernel_size": 3, "padding": 1}),
    "conv1d, same": (nn.Conv1d, {"kernel_size": 5, "padding": "same", "dilation": 2}),
    "pointwise": (nn.Conv2d, {"kernel_size": 1}),
    "conv2d": (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    "no padding": (nn.Conv2d, {"kernel_size": 3, "padding": "valid"}),
    "same": (nn.Conv2d, {"kernel_size": 5, "padding": "same"}),
    "strided": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}),
    "dilated": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "replicate": (nn.Conv2d, {"kernel_size": 5, "padding": 2, "padding_mode": "replicate"}),
    "circular": (nn.Conv2d, {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "circular"}),
}


def module_and_input(kind, width, **options):
    make, geometry = GEOMETRIES[kind]
    shape = {nn.Linear: (2, 5, width), nn.Conv1d: (2, width, 9), nn.Conv2d: (2, width, 7, 8)}[make]
    return make(width, 12, **geometry, **options), torch.randn(shape)


def balance_of(kind, segments, width):
    scale = torch.exp(torch.randn(width)) if kind in ("scale", "both") else None
    return LayerBalance(scale, segments if kind in ("rotate", "both") else (), seed=5)


def as_float(module):
    """The quantized counterpart, computing in floating point."""
    model = nn.Sequential(copy.deepcopy(module))
    convert(model, Recipe.from_name("w4a4"))
    model[0].state = State.FLOAT
    return model[0]


def assert_balancing_changes_nothing(module, x, balance):
    # In float64: how far sums of float32 stray depends on the processor.
    module, x = module.double(), x.double()
    layer, expected = as_float(module), module(x)
    layer.apply_balance(balance)
    assert layer.balance.kind == balance.kind
    assert not torch.allclose(layer.balance_input(x), x)
    assert (layer(x) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("width", [16, 48, 64, 96, 180, 320])
def test_the_float_output_stays_for_every_layer_type_and_width(geometry, width, kind):
    module, x = module_and_input(geometry, width)
    assert_balancing_changes_nothing(module, x, balance_of(kind, segments_of((width,)), width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("geometry", ["linear", "reflect"])
def test_the_float_output_stays_with_blocks(geometry, block, kind):
    module, x = module_and_input(geometry, 320)
    segments = segments_of((320,), block)
    assert max(size for _, size in segments) <= block
    assert_balancing_changes_nothing(module, x, balance_of(kind, segments, 320))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sources", [(960,), (640, 320)])
@pytest.mark.parametrize("geometry", ["linear", "conv2d"])
def test_the_float_output_stays_for_concatenated_inputs(geometry, sources, kind):
    module, x = module_and_input(geometry, 960)
    assert_balancing_changes_nothing(module, x, balance_of(kind, segments_of(sources), 960))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [2, 4])
def test_the_float_output_stays_with_groups(groups, kind):
    module, x = module_and_input("conv2d", 96, groups=groups)
    (count, size), *_ = segments_of((96 // groups,))
    assert_balancing_changes_nothing(module, x, balance_of(kind, ((count * groups, size),), 96))


def test_an_input_without_a_batch_is_balanced_alike():
    module, x = module_and_input("conv2d", 64)
    layer = as_float(module)
    layer.apply_balance(balance_of("both", ((1, 64),), 64))
    torch.testing.assert_close(layer(x[0]), module(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_weight_comes_back(kind, groups):
    weight = torch.randn(12, 96 // groups, 3, 3)
    balance = balance_of(kind, ((groups, 96 // groups),) if groups == 1 else ((6, 16),), 96)
    balanced = balance.weight(weight, groups)
    assert not torch.allclose(balanced, weight)
    torch.testing.assert_close(balance.weight(balanced, groups, inverse=True), weight)


def test_rotations_are_fixed_by_their_seed_and_differ_between_seeds():
    signs = [LayerBalance(None, ((1, 64),), seed).signs(64) for seed in (1, 1, 2)]
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])
    assert set(signs[0].tolist()) == {-1.0, 1.0}


def test_scaling_evens_out_what_it_should():
    x, weight = torch.rand(20) * 10 + 0.1, torch.rand(20) + 0.1
    equal = channel_scale(x, weight, 0.5)
    # alpha = beta = 1/2 brings input and weight of a channel to one magnitude.
    torch.testing.assert_close(
        x / equal / (weight * equal), torch.ones(20) * (x / equal**2 / weight)[0]
    )
    flat = x / channel_scale(x, weight, 1.0)
    torch.testing.assert_close(flat, flat[:1].expand(20))
    assert channel_scale(x, weight, 0.3).log().mean().abs() < 1e-5
    assert torch.equal(channel_scale(x, weight, 0.3), channel_scale(x, weight, 0.3, 0.7))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dead_and_extreme_channels_have_finite_scales(alpha):
    x = torch.tensor([0.0, 1.0, 1e30, 1e-30, 2.0, 0.0])
    weight = torch.tensor([1.0, 0.0, 1e-20, 1e20, 0.5, 0.0])
    scale = channel_scale(x, weight, alpha)
    assert bool((scale.isfinite() & (scale > 0)).all())
    assert scale.max() <= REACH * 1.001
    assert scale[[0, 1, 5]].tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(channel_scale(torch.zeros(3), torch.ones(3), alpha), torch.ones(3))


def test_scales_survive_being_kept_as_reciprocals():
    scale = channel_scale(torch.rand(100_000) + 1e-3, torch.rand(100_000) + 1e-3, 0.5)
    assert torch.equal(1 / (1 / scale), scale)
    # That is no property of numbers.
    x = torch.rand(100_000) + 1e-3
    assert not torch.equal(1 / (1 / x), x)


def plan_for(model):
    return {
        layer.name: balance_of("both", ((1, 16),), 16)
        if layer.channels == 16 and layer.groups == 1
        else LayerBalance()
        for layer in quant_layers(model)
    }


@pytest.fixture
def converted():
    return converted_net("w4a4")


def test_a_plan_comes_back_from_its_file(tmp_path):
    plan = {
        "a.b": balance_of("both", ((5, 64),), 320),
        "c": balance_of("scale", (), 7),
        "d": balance_of("rotate", ((1, 640), (1, 320)), 960),
        "e": LayerBalance(),
    }
    save_balance(plan, tmp_path / "plan.safetensors", {"recipe": "w4a4"})
    found = load_balance(tmp_path / "plan.safetensors")
    assert list(found) == list(plan)
    for name, balance in plan.items():
        assert found[name].to_dict() == balance.to_dict()
        assert (found[name].scale is None) == (balance.scale is None)
        assert balance.scale is None or torch.equal(found[name].scale, balance.scale)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other", "text"])
def test_a_damaged_plan_is_named(tmp_path, damage):
    path = tmp_path / "plan.safetensors"
    save_balance({"a": balance_of("both", ((1, 64),), 64)}, path)
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        save_file({"a": torch.ones(3)}, path)
    elif damage == "text":
        path.write_text("layers: none")
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -4])
    with pytest.raises(QuantFaceError, match=r"plan\.safetensors"):
        load_balance(path)


@pytest.mark.parametrize(
    "layers",
    [
        '{"a": {"segments": [[1]], "seed": 0}}',
        '{"a": {"segments": [[0, 16]], "seed": 0}}',
        '{"a": {"segments": 3, "seed": 0}}',
        '{"a": {"segments": [], "seed": -1}}',
        '{"a": {"segments": [], "seed": true}}',
        '{"a": {"segments": [], "seed": 0, "scaled": true}}',
        '{"a": {"segments": []}}',
        '{"a": 3}',
        "[1]",
    ],
)
def test_a_malformed_plan_names_the_file(tmp_path, layers):
    path = tmp_path / "plan.safetensors"
    save_file({}, path, metadata={"quantface_balance": f'{{"layers": {layers}}}'})
    with pytest.raises(QuantFaceError, match=r"plan\.safetensors"):
        load_balance(path)


def test_a_plan_of_another_model_is_refused_and_nothing_is_changed(converted):
    plan = plan_for(converted)
    wrong = {
        "no layer 'head'": {**plan, "head": LayerBalance()},
        "balance file has no layer 'line'": {k: v for k, v in plan.items() if k != "line"},
        "layer line: found balancing for": {**plan, "line": balance_of("scale", (), 17)},
        "layer body: found blocks": {**plan, "body": LayerBalance(None, ((1, 16),))},
        "layer line: found a scale": {**plan, "line": LayerBalance(torch.zeros(16))},
        "layer linear: found a scale": {
            **plan,
            "linear": LayerBalance(torch.full((16,), torch.nan)),
        },
    }
    for message, bad in wrong.items():
        with pytest.raises(QuantFaceError, match=message):
            apply_plan(converted, bad)
        assert all(layer.balance.kind == "none" for layer in quant_layers(converted))


def test_an_order_that_does_not_exist_is_named():
    model = nn.Sequential(nn.Linear(36, 4))
    convert(model, Recipe.from_name("w4a4"))
    with pytest.raises(QuantFaceError, match="layer 0: there is no Hadamard order 36"):
        apply_plan(model, {"0": LayerBalance(None, ((1, 36),))})


def test_a_layer_is_balanced_once(converted):
    apply_plan(converted, plan_for(converted))
    with pytest.raises(QuantFaceError, match="layer linear: balanced or quantized already"):
        apply_plan(converted, plan_for(converted))


def test_a_chosen_plan_gives_the_model_that_choosing_gave(tmp_path):
    recipe = Recipe.from_dict({"name": "w4a4", "balance": {"kind": "both"}, "branch": {"svd": 1}})
    chosen, planned = TinyNet(), TinyNet()
    planned.load_state_dict(chosen.state_dict())
    only = copy.deepcopy(chosen)
    images = pictures()
    convert(only, recipe)
    save_balance(
        balance_stage(only, recipe, CalibrationData(images, progress=False)),
        tmp_path / "plan.safetensors",
    )
    prepare(chosen, recipe, CalibrationData(images, progress=False))
    plan = load_balance(tmp_path / "plan.safetensors")
    assert {balance.kind for balance in plan.values()} == {"none", "scale", "both"}
    prepare(planned, recipe, CalibrationData(images, progress=False), balance=plan)
    # All of the state: the ranges of the inputs as they arrive, too.
    before, after = chosen.state_dict(), planned.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(layer.act_low < layer.act_high for layer in quant_layers(planned))
