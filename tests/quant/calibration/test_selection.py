"""The choice of a balancing: never worse than any fixed one, and worth it where outliers are."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import LayerBalance, Recipe, calibrating, convert
from quantface_arch.quant.calibration import selection, trial
from quantface_arch.quant.config.specs import BalanceSpec
from quantface_arch.quant.ops.balance import channel_scale
from quantface_arch.quant.ops.hadamard import segments_of

MODULES = {
    "linear": (nn.Linear(48, 20), (40, 48)),
    "tokens": (nn.Linear(48, 20), (2, 30, 48)),
    "conv1d": (nn.Conv1d(48, 20, 3, padding=1), (2, 48, 30)),
    "conv2d": (nn.Conv2d(48, 20, 3, padding=1), (2, 48, 12, 12)),
    "groups": (nn.Conv2d(48, 48, 3, padding=1, groups=2), (2, 48, 12, 12)),
}


def watched(kind, outlier=1.0, name="w4a4"):
    """A converted layer alone, and what was seen of inputs of which one channel is larger."""
    module, shape = MODULES[kind]
    model = nn.Sequential(copy.deepcopy(module))
    convert(model, Recipe.from_name(name))
    layer, x = model[0], torch.randn(shape)
    x.select(layer.channel_axis, 7).mul_(outlier)
    with calibrating(model, keep_samples=True) as calibration:
        model(x)
    return layer, calibration.observers["0"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("outlier", [1.0, 100.0])
@pytest.mark.parametrize("rank", [0, 4])
def test_auto_is_never_worse_than_a_fixed_choice(kind, outlier, rank):
    layer, observer = watched(kind, outlier)
    errors = {}
    for what in ("auto", "none", "scale", "rotate", "both"):
        balance = selection.choose(layer, observer, BalanceSpec(what), (48,), rank)
        assert balance.kind == what or what == "auto"
        errors[what] = trial.output_error(layer, observer.samples, balance, rank)
    assert errors["auto"] == min(errors.values())


@pytest.mark.parametrize("kind", MODULES)
def test_balancing_pays_where_a_channel_is_a_hundred_times_larger(kind):
    layer, observer = watched(kind, 100.0)
    balance = selection.choose(layer, observer, BalanceSpec(), (48,), 0)
    assert balance.kind != "none"
    plain = trial.output_error(layer, observer.samples, LayerBalance(), 0)
    assert trial.output_error(layer, observer.samples, balance, 0) < 0.5 * plain


def test_a_searched_exponent_is_not_worse_than_a_fixed_one():
    layer, observer = watched("conv2d", 30.0)
    errors = [
        trial.output_error(
            layer,
            observer.samples,
            selection.choose(layer, observer, BalanceSpec("scale", alpha), (48,), 0),
            0,
        )
        for alpha in ("search", 0.2, 0.5, 0.8)
    ]
    assert errors[0] == min(errors)


@pytest.mark.parametrize("kind", MODULES)
def test_the_error_falls_with_bits_and_with_rank_and_leaves_the_layer(kind):
    by_bits = []
    for name in ("w2a2", "w4a4", "w6a6", "w8a8"):
        layer, observer = watched(kind, name=name)
        weight = layer.weight
        by_bits.append(trial.output_error(layer, observer.samples, LayerBalance(), 0))
        assert layer.weight is weight and layer.balance.kind == "none" and layer.rank == 0
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_bits[-1] < by_bits[0] / 100
    layer, observer = watched(kind, name="w2a8")
    ranks = [
        trial.output_error(layer, observer.samples, LayerBalance(), rank) for rank in (0, 10, 20)
    ]
    assert ranks == sorted(ranks, reverse=True)
    if layer.groups == 1:
        assert ranks[2] < 0.1 * ranks[0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("range", ["minmax", "ema", "percentile"])
def test_candidates_are_compared_on_the_grid_that_the_layer_then_has(range, symmetric):
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(48, 20)), torch.randn(256, 48)
    # A few far values, so that clipping them would lower the error.
    x[:3] *= 6
    activations = {"range": range, "symmetric": symmetric, "percentile": 99}
    # Eight-bit weights whose range is not searched: all of the error is the input's.
    options = {"name": "w8a3", "activations": activations, "weights": {"range": "minmax"}}
    convert(model, Recipe.from_dict(options))
    with calibrating(model, keep_samples=True) as calibration, torch.no_grad():
        model(x[:128])
        wanted = model[0].product(x[:128], model[0].weight, None)
    samples = x[None, :128]
    estimated = trial.output_error(model[0], samples, LayerBalance(), 0)
    calibration.apply()
    with torch.no_grad():
        found = model[0].product(model[0].quantize_input(x[:128]), model[0].weight, None)
    assert estimated == pytest.approx(float((found - wanted).square().mean()), rel=0.02)


def test_the_error_is_the_one_that_the_layer_then_has():
    module, _ = MODULES["linear"]
    x = torch.randn(16, 48)
    model = nn.Sequential(copy.deepcopy(module))
    expected = model(x)
    minmax = {"range": "minmax"}
    options = {"name": "w4a4", "weights": minmax, "activations": minmax}
    options |= {"balance": {"kind": "none"}, "branch": {"svd": 0}}
    convert(model, Recipe.from_dict(options))
    with calibrating(model, keep_samples=True) as calibration:
        for row in x:
            model(row[None])
    found = trial.output_error(model[0], x, LayerBalance(), 0)
    calibration.apply()
    error = float((model(x) - expected).detach().square().mean())
    assert found == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_wide_layer_is_judged_by_some_of_its_outputs(kind, granularity, rank, monkeypatch):
    monkeypatch.setattr(trial, "OUTPUTS", 20)
    module, shape = MODULES[kind]
    x, scale = torch.randn(shape), torch.rand(48) + 0.5
    errors = []
    for copies in (1, 2, 3):
        weight = module.weight.detach().repeat_interleave(copies, 0)
        wide = type(module)(48, 20 * copies, *module.weight.shape[2:3])
        wide.weight = nn.Parameter(weight)
        if not rank and granularity != "tensor":
            # Outputs that are left out.
            weight.view(20, copies, *weight.shape[1:])[:, 1:] *= 100
        recipe = {"name": "w4a4", "weights": {"granularity": granularity, "group": 16}}
        model = nn.Sequential(wide)
        convert(model, Recipe.from_dict(recipe))
        errors.append(trial.output_error(model[0], x, LayerBalance(scale), rank))
    assert errors[1:] == pytest.approx(errors[:1] * 2, rel=1e-2)


def kinds_of(spec, width=48, groups=1, sources=None):
    model = nn.Sequential(nn.Conv2d(width, groups * 4, 1, groups=groups))
    convert(model, Recipe.from_name("w4a4"))
    with calibrating(model, keep_samples=True) as calibration:
        model(torch.randn(1, width, 4, 4))
    found = selection.candidates_for(
        model[0], calibration.observers["0"], spec, sources or (width,)
    )
    return [balance.kind for balance in found], model[0]


@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both", "auto"])
def test_narrow_layers_stay_unbalanced(kind):
    assert kinds_of(BalanceSpec(kind), width=15)[0] == ["none"]
    assert kinds_of(BalanceSpec(kind), width=16)[0] != ["none"] or kind == "none"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("rotate", {"none"}), ("both", {"scale"}), ("auto", {"none", "scale"}), ("scale", {"scale"})],
)
def test_where_no_order_fits_a_layer_is_scaled_only(kind, expected):
    assert set(kinds_of(BalanceSpec(kind), width=36)[0]) == expected
    # Depthwise: a group has no two channels to mix.
    assert set(kinds_of(BalanceSpec(kind), width=32, groups=32)[0]) == expected


def test_auto_tries_every_kind_the_plainest_first():
    kinds = kinds_of(BalanceSpec("auto"))[0]
    assert kinds[0] == "none"
    assert set(kinds) == {"none", "scale", "rotate", "both"}


@pytest.mark.parametrize(
    ("options", "segments"),
    [
        ({}, ((1, 960),)),
        ({"sources": "split"}, ((1, 640), (1, 320))),
        ({"block": 64}, ((15, 64),)),
        ({"block": 128, "sources": "split"}, ((5, 128), (4, 80))),
    ],
)
def test_blocks_and_sources_shape_the_rotation(options, segments):
    model = nn.Sequential(nn.Linear(960, 8))
    convert(model, Recipe.from_name("w4a4"))
    with calibrating(model, keep_samples=True) as calibration:
        model(torch.randn(4, 960))
    spec = BalanceSpec("rotate", **options)
    found = selection.choose(model[0], calibration.observers["0"], spec, (640, 320), 0)
    assert found.segments == segments


def test_choosing_needs_statistics_of_every_layer():
    model = TinyNet()
    convert(model, Recipe.from_name("w4a4"))
    with calibrating(model, keep_samples=True) as calibration:
        model.conv_in(pictures())
    with pytest.raises(QuantFaceError, match="layer body: saw no input"):
        selection.balance_layers(model, calibration, Recipe.from_name("w4a4"))


def test_a_list_of_kinds_and_exponents_is_what_a_layer_chooses_from():
    model, x = TinyNet().eval(), pictures()
    options = {"kind": ["none", "scale"], "alpha": [0.25, 0.75], "beta": [0, None]}
    recipe = Recipe.from_dict({"name": "w4a4", "balance": options})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    convert(model, recipe)
    with calibrating(model, keep_samples=True) as calibration:
        model(x)
    layer = model.linear
    observer = calibration.observers["linear"]
    found = list(selection.candidates_for(layer, observer, recipe.balance, (16,)))
    assert [item.kind for item in found] == ["none"] + 4 * ["scale"]
    absmax = layer.weight.detach().abs().amax(0)
    pairs = ((0.25, 0.0), (0.25, 0.75), (0.75, 0.0), (0.75, 0.25))
    for item, (alpha, beta) in zip(found[1:], pairs, strict=True):
        torch.testing.assert_close(item.scale, channel_scale(observer.absmax, absmax, alpha, beta))
    errors = [trial.output_error(layer, observer.samples, item, 1) for item in found]
    chosen = selection.choose(layer, observer, recipe.balance, (16,), 1)
    assert trial.output_error(layer, observer.samples, chosen, 1) == min(errors)


def test_rounds_of_the_branch_lower_the_outputs_error_and_the_layer_stays():
    layer = nn.Linear(48, 48)
    layer.weight.data.copy_(torch.randn(48, 8) @ torch.randn(8, 48) + 0.3 * torch.randn(48, 48))
    model = nn.Sequential(layer)
    convert(model, Recipe.from_dict({"name": "w3a8", "balance": {"kind": "none"}}))
    x, weight = torch.randn(64, 48), model[0].weight.detach().clone()
    wanted = x @ weight.T
    assert trial.best_factors(model[0], 4, 1, x) is None
    errors = []
    for iterations in (2, 12):
        layer = copy.deepcopy(model[0])
        layer.add_branch(4, 0, factors=trial.best_factors(model[0], 4, iterations, x))
        layer.quantize_weight(x.square().mean(0), trial.COARSE)
        found = x @ (layer.weight + layer.branch_up @ layer.branch_down).T
        errors.append(float((found - wanted).detach().square().mean()))
    once = copy.deepcopy(model[0])
    once.add_branch(4, 0)
    once.quantize_weight(x.square().mean(0), trial.COARSE)
    found = x @ (once.weight + once.branch_up @ once.branch_down).T
    assert errors[1] <= errors[0] <= float((found - wanted).detach().square().mean())
    assert errors[1] < 0.98 * float((found - wanted).detach().square().mean())
    assert torch.equal(model[0].weight, weight) and model[0].rank == 0


def test_rotations_are_not_offered_to_layers_of_8_bits_where_there_is_a_choice():
    layer, observer = watched("linear", name="w8a8")
    for kind, found in (("auto", {"none", "scale"}), ("rotate", {"rotate"}), ("both", {"both"})):
        items = selection.candidates_for(layer, observer, BalanceSpec(kind), (layer.channels,))
        assert {item.kind for item in items} == found


def test_inputs_of_8_bits_are_judged_as_runtimes_round_them():
    """Rotation would spread the outlier, but runtimes round the input before it is rotated."""
    errors = {}
    for name in ("w8a8", "w8a7"):
        layer, observer = watched("linear", outlier=100.0, name=name)
        rotation = LayerBalance(None, segments_of((layer.channels,), BalanceSpec().block), 1)
        errors[name] = [
            trial.output_error(layer, observer.samples, balance, 0)
            for balance in (LayerBalance(), rotation)
        ]
    plain, rotated = errors["w8a7"]
    assert rotated < 0.5 * plain
    plain, rotated = errors["w8a8"]
    assert rotated > 0.9 * plain
