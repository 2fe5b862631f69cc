"""The choice of balancings in whole networks: as the recipe says, and nearer to the float ones."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures, sqnr
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    Recipe,
    balance_stage,
    convert,
    prepare,
    quant_layers,
)


def test_patterns_set_the_kind_of_their_layers_and_must_match():
    model = TinyNet()
    layers = {"lin*": "scale", "line": "none"}
    options = {"name": "w4a4", "balance": {"kind": "both", "layers": layers}}
    prepare(model, options, CalibrationData(pictures(), progress=False))
    kinds = {layer.name: layer.balance.kind for layer in quant_layers(model)}
    assert kinds["linear"] == kinds["line"] == "scale"
    assert kinds["conv_in"] == "none"
    assert kinds["conv_out"] == "both"
    options["balance"] = {"layers": {"head": "scale"}}
    with pytest.raises(QuantFaceError, match="balance layers: pattern 'head' matches no layer"):
        prepare(TinyNet(), options, CalibrationData(pictures(), progress=False))


def test_concatenated_inputs_are_rotated_as_the_model_says():
    class Joined(TinyNet):
        def input_sources(self):
            return {"conv_out": (8, 8), "linear": (16,)}

    model = Joined()
    recipe = Recipe.from_dict({"name": "w4a4", "balance": {"kind": "rotate", "sources": "split"}})
    convert(model, recipe)
    plan = balance_stage(model, recipe, CalibrationData(pictures(), progress=False))
    # Halves of 8 channels are too narrow to be rotated by themselves.
    assert plan["conv_out"].kind == "none"
    assert plan["linear"].segments == ((1, 16),)


def test_a_layer_used_without_a_batch_is_measured_too():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(32, 16)
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.inner = nn.Conv2d(16, 16, 3, padding=1)
            self.time = nn.Parameter(torch.randn(32), requires_grad=False)

        def forward(self, x):
            y = self.conv(x) + self.embed(self.time).view(1, -1, 1, 1)
            return torch.stack([self.inner(image) for image in y])

    model, x = Vector(), pictures()
    expected = model(x)
    prepare(model, "w6a6", CalibrationData(x, progress=False))
    assert sqnr(expected, model(x)) > 20


PLAIN = {"balance": {"kind": "none"}, "branch": {"svd": 0}}


def outlier_net():
    """TinyNet with a few far larger channels, as large networks have them."""
    torch.manual_seed(3)
    net = TinyNet().eval()
    net.norm.weight.data[[2, 9]] = 30
    return net


@pytest.mark.slow
@pytest.mark.parametrize("options", [PLAIN, {}], ids=["plain", "method"])
def test_the_whole_network_gets_closer_with_bits(options):
    x, ratios = pictures(), []
    for bits in (2, 3, 4, 6, 8):
        model = outlier_net()
        expected = model(x)
        prepare(model, {"name": f"w{bits}a{bits}", **options}, CalibrationData(x, progress=False))
        ratios.append(sqnr(expected, model(x)))
    assert ratios == sorted(ratios)
    assert ratios[-1] > 30


def test_the_method_is_better_than_plain_quantization_where_outliers_are():
    x, ratios = pictures(), {}
    for name, options in (("plain", PLAIN), ("method", {"branch": {"svd": 2, "budget": 1}})):
        model = outlier_net()
        expected = model(x)
        prepare(model, {"name": "w4a4", **options}, CalibrationData(x, progress=False))
        ratios[name] = sqnr(expected, model(x))
    assert ratios["method"] > ratios["plain"] + 1


def test_a_network_prepared_in_rounds_is_nearer():
    start, x = TinyNet().eval(), pictures(12)
    ratios = []
    for iterations in (1, 8):
        model = copy.deepcopy(start)
        branch = {"svd": 3, "budget": 1, "iterations": iterations}
        options = {"name": "w3a8", "balance": {"kind": "none"}, "branch": branch}
        prepare(model, options, CalibrationData(x, progress=False))
        ratios.append(sqnr(start(x), model(x)))
    assert ratios[1] > ratios[0]
