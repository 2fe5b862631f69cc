"""Steps for groups of channels, ranges found anew for every input, moving averages of extremes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from quant_helpers import TinyNet, pictures, sqnr

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    Recipe,
    load_checkpoint,
    prepare,
    quant_layers,
    quantize,
    save_checkpoint,
    trainable,
)
from quantface_arch.quant.calibration.observer import MOMENTUM, ActivationObserver
from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops.quantizer import (
    dynamic_grid,
    fake_quantize,
    grid,
    scale_and_zero_point,
)
from quantface_arch.quant.ops.ranges import per_weight, steps_shape, weight_range

GROUPED = QuantSpec(4, True, "group", "minmax", group=8)
OPTIONS = {
    "name": "w4a4",
    "weights": {"granularity": "group", "group": 8},
    "activations": {"granularity": "group", "group": 8, "symmetric": True},
    "balance": {"kind": "none"},
    "branch": {"svd": 1, "budget": 1},
}


def rounded(weight, spec, importance=None):
    low, high = weight_range(weight, spec, importance)
    assert low.shape == high.shape == steps_shape(weight, spec)
    steps = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
    steps = (per_weight(step, weight, spec) for step in steps)
    return fake_quantize(weight, *steps, *grid(spec.bits, spec.symmetric))


@pytest.mark.parametrize("shape", [(6, 16), (6, 20), (6, 20, 3), (6, 20, 3, 3), (6, 5, 2, 2)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_is_rounded_as_if_it_were_alone(shape, symmetric):
    weight, spec = torch.randn(shape), replace(GROUPED, symmetric=symmetric)
    found = rounded(weight, spec)
    for start in range(0, shape[1], 8):
        part = weight[:, start : start + 8]
        for place in range(part[0, 0].numel()):
            alone = part.flatten(2)[..., place] if part.ndim > 2 else part
            wanted = rounded(alone, replace(spec, granularity="channel"))
            value = found[:, start : start + 8]
            value = value.flatten(2)[..., place] if part.ndim > 2 else value
            torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("bits", [3, 4])
def test_smaller_groups_are_nearer_also_when_searched_by_importance(bits):
    weight = torch.randn(16, 64, 3, 3) * torch.logspace(-1, 0, 64).view(1, -1, 1, 1)
    importance = torch.rand(64) + 0.1
    ratios = []
    for granularity, group in (("channel", 64), ("group", 32), ("group", 8)):
        spec = QuantSpec(bits, True, granularity, "mse", group=group)
        ratios.append(sqnr(weight, rounded(weight, spec, importance)))
    assert ratios == sorted(ratios) and ratios[2] > ratios[0] + 2
    cost = importance.view(1, -1, 1, 1)
    plain, weighed = (
        ((rounded(weight, spec, importance) - weight).square() * cost).sum()
        for spec in (replace(spec, weighted=False), spec)
    )
    assert weighed < plain


@pytest.mark.parametrize("power", [2.0, 2.4, 4.0])
def test_a_higher_power_keeps_more_of_the_tail(power):
    weight = torch.randn(8, 4000) * torch.randn(8, 4000).abs()
    spec = QuantSpec(4, True, "channel", power=power)
    least = weight_range(weight, replace(spec, power=2.0))[1]
    assert bool((weight_range(weight, spec)[1] >= least).all())
    errors = [
        (rounded(weight, one) - weight).abs().pow(power).sum()
        for one in (spec, replace(spec, power=2.0))
    ]
    assert errors[0] <= errors[1] * 1.0001


@pytest.mark.parametrize("axis", [-1, -3])
@pytest.mark.parametrize("group", [None, 8, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_steps_are_each_positions_own(axis, group, symmetric):
    x = torch.randn(2, 20, 3, 4) * torch.logspace(-3, 3, 12).view(3, 4)
    x = x.movedim(1, axis)
    scale, zero = dynamic_grid(x, 4, symmetric, group, axis)
    found = fake_quantize(x, scale, zero, *grid(4, symmetric))
    flat, result = (value.movedim(axis, -1).flatten(0, -2) for value in (x, found))
    size = group or 20
    for start in range(0, 20, size):
        part = flat[:, start : start + size]
        ends = part.aminmax(dim=1)
        steps = scale_and_zero_point(ends.min, ends.max, 4, symmetric)
        wanted = fake_quantize(part, *(step[:, None] for step in steps), *grid(4, symmetric))
        torch.testing.assert_close(result[:, start : start + size], wanted)


@pytest.mark.parametrize("granularity", ["token", "group"])
def test_a_network_with_groups_and_dynamic_ranges_is_nearer_and_survives_its_file(
    granularity, tmp_path
):
    start, x = TinyNet().eval(), pictures()
    wanted = start(x)
    options = copy.deepcopy(OPTIONS)
    options["activations"]["granularity"] = granularity
    plain, model = copy.deepcopy(start), copy.deepcopy(start)
    static = {"name": "w4a4", "balance": {"kind": "none"}, "branch": {"svd": 1, "budget": 1}}
    prepare(plain, static, CalibrationData(x, progress=False))
    quantize(model, options, x, progress=False)
    assert sqnr(wanted, model(x)) > sqnr(wanted, plain(x)) + 1
    save_checkpoint(model, tmp_path / "model.safetensors", {})
    loaded = load_checkpoint(tmp_path / "model.safetensors", lambda _: TinyNet())
    assert torch.equal(loaded(x), model(x))
    # There is no fixed range that could be trained.
    trainable(model, bounds=True)
    assert all(layer.act_bounds is None for layer in quant_layers(model))


def test_a_moving_average_of_extremes_follows_the_batches():
    observer, low, high = ActivationObserver("x", -1), None, None
    for step in range(5):
        x = torch.randn(1, 50) * (step + 1)
        observer(x)
        ends = float(x.min()), float(x.max())
        low = ends[0] if low is None else MOMENTUM * low + (1 - MOMENTUM) * ends[0]
        high = ends[1] if high is None else MOMENTUM * high + (1 - MOMENTUM) * ends[1]
    found = observer.range(QuantSpec(4, range="ema"))
    assert found == pytest.approx((low, high))
    full = observer.range(QuantSpec(4, range="minmax"))
    assert full[0] < found[0] and found[1] < full[1]
    copied = ActivationObserver("x", -1)
    copied.load_state_dict(observer.state_dict())
    assert copied.range(QuantSpec(4, range="ema")) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"granularity": "token"}}, "recipe weights: granularity: found 'token'"),
        ({"activations": {"granularity": "channel"}}, "recipe activations: granularity: found"),
        ({"activations": {"rounding": "gptq"}}, "recipe activations: rounding: found 'gptq'"),
        ({"weights": {"rounding": "up"}}, "rounding: found 'up', allowed are nearest, gptq"),
        ({"weights": {"range": "ema"}}, "recipe weights: range: found 'ema'"),
        ({"weights": {"group": 0}}, "group: found 0"),
        ({"weights": {"power": 1}}, "power: found 1"),
        ({"weights": {"weighted": 1}}, "weighted: found 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(QuantFaceError, match=message):
        Recipe.from_dict({"name": "w4a4", **options})
