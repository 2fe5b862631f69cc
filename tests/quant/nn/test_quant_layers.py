"""Quantized layers: torch's own on rounded values, with an explicit lifecycle."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures, sqnr
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    QuantSpec,
    Recipe,
    State,
    calibrating,
    convert,
    quant_layers,
    quantize,
)
from quantface_arch.quant.nn.convert import TABLE

LAYERS = {
    "linear": (nn.Linear(8, 6), (4, 8)),
    "linear on tokens, no bias": (nn.Linear(8, 6, bias=False), (2, 5, 8)),
    "conv1d": (nn.Conv1d(8, 6, 1), (2, 8, 9)),
    "plain": (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 9, 9)),
    "no batch": (nn.Conv2d(8, 6, 3), (8, 9, 9)),
    "depthwise, strided": (nn.Conv2d(8, 8, 3, stride=2, groups=8), (2, 8, 9, 9)),
    "dilated, same": (nn.Conv2d(8, 6, 3, dilation=2, padding="same"), (2, 8, 9, 9)),
    "reflect": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (2, 8, 9, 9)),
    "circular": (nn.Conv2d(8, 6, (3, 1), padding=(1, 0), padding_mode="circular"), (2, 8, 9, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_quantized_layer_follows_the_float_one_and_more_bits_follow_closer(kind):
    module, shape = LAYERS[kind]
    x = torch.randn(shape)
    with torch.no_grad():
        ratios = []
        for name in ("w2a2", "w4a4", "w6a6", "w8a8"):
            model = nn.Sequential(copy.deepcopy(module))
            reference = model(x)
            convert(model, Recipe.from_name(name))
            with calibrating(model) as calibration:
                assert torch.equal(model(x), reference)
            calibration.apply()
            ratios.append(sqnr(reference, model(x)))
    assert ratios == sorted(ratios)
    assert ratios[-1] > 30


def test_output_is_torchs_on_rounded_weights_and_inputs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    x = pictures()
    quantize(model, "w4a4", x, progress=False)
    layer = model[0]
    rounded = layer.quantize_input(x)
    assert len(rounded.unique()) <= 16
    assert all(len(channel.unique()) <= 15 for channel in layer.weight)
    assert torch.equal(model(x), nn.functional.conv2d(rounded, layer.weight, layer.bias, padding=1))


def test_asymmetric_and_per_tensor_weights():
    x = pictures()
    for spec in (QuantSpec(4, False, "channel"), QuantSpec(4, False), QuantSpec(4, True)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        reference = model(x)
        quantize(model, Recipe(spec, QuantSpec(8)), x, progress=False)
        assert model[0].weight_scale.shape == ((4,) if spec.granularity == "channel" else (1,))
        assert sqnr(reference, model(x)) > 12


def test_using_a_layer_that_is_not_calibrated_names_it():
    model = TinyNet()
    convert(model, Recipe.from_name("w8a8"))
    with pytest.raises(QuantFaceError, match="layer conv_in: not calibrated"):
        model(pictures())


def test_a_layer_in_state_float_runs_as_before():
    model = TinyNet()
    x = pictures()
    reference = model(x)
    convert(model, Recipe.from_name("w2a2"))
    for layer in quant_layers(model):
        layer.state = State.FLOAT
    assert torch.equal(model(x), reference)


def test_parameters_are_borrowed_and_the_float_ones_survive():
    model = TinyNet()
    weight = model.conv_in.weight
    before = weight.detach().clone()
    convert(model, Recipe.from_name("w4a8"))
    assert model.conv_in.weight is weight
    with calibrating(model) as calibration:
        model(pictures())
    calibration.apply()
    assert torch.equal(weight, before)
    assert not torch.equal(model.conv_in.weight, before)


def test_gradients_reach_the_input_through_quantized_layers():
    model = TinyNet()
    x = pictures()
    quantize(model, "w4a8", x, progress=False)
    x.requires_grad_(True)
    model(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert model.conv_in.weight.grad is None


def test_state_dict_carries_the_state():
    model = TinyNet()
    x = pictures()
    quantize(model, "w4a8", x, progress=False)
    other = TinyNet()
    convert(other, Recipe.from_name("w4a8"))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert all(torch.is_tensor(value) for value in model.state_dict().values())


def test_state_dict_of_other_widths_is_refused():
    model, other = TinyNet(), TinyNet()
    quantize(model, "w4a8", pictures(), progress=False)
    convert(other, Recipe.from_name("w4a4"))
    with pytest.raises(Exception, match=r"layer conv_in: found .*\[4, 8\] bits, expected \[4, 4\]"):
        other.load_state_dict(model.state_dict())


def test_float_weights_load_strictly_and_void_the_calibration():
    teacher, model = TinyNet(), TinyNet()
    quantize(model, "w4a8", pictures(), progress=False)
    model.load_state_dict(teacher.state_dict())
    assert torch.equal(model.body.weight, teacher.body.weight)
    with pytest.raises(QuantFaceError, match="not calibrated"):
        model(pictures())


def test_description_names_widths_and_state():
    model = TinyNet()
    quantize(model, {"name": "w4a8", "eight_bit": ["conv_in"]}, pictures(), progress=False)
    assert "w8a8, quantized" in repr(model.conv_in)
    assert "w4a8, quantized" in repr(model.linear)
    assert set(TABLE.values()) >= {type(model.conv_in), type(model.linear), type(model.line)}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_layers_use_no_more_values_than_their_widths_allow(bits, kind, symmetric):
    model, x = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 24, 3)), pictures()
    options = {"name": f"w{bits}a{bits}", "activations": {"symmetric": symmetric}}
    options |= {"balance": {"kind": kind}, "branch": {"svd": 2, "budget": 1}}
    quantize(model, options, x, progress=False)
    layer = model[1]
    assert layer.balance.kind == kind
    assert layer.rank == (2 if bits < 8 else 0)
    balanced = layer.balance_input(model[0](x))
    rounded = layer.quantize_input(balanced)
    assert 2 < len(rounded.unique()) <= 2**bits
    steps = layer.weight / layer.per_weight(layer.weight_scale)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.abs().max().round() <= 2 ** (bits - 1) - 1
    # The branch is all that is added to torch's product of rounded values.
    expected = nn.functional.conv2d(rounded, layer.weight, layer.bias)
    expected = expected + layer.branch(balanced) if layer.rank else expected
    assert torch.equal(model(x), expected)
