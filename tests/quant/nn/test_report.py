"""The report names what stays in floating point, and what a layer cannot have."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import TinyNet, Tokens, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    LayerBalance,
    QuantLayer,
    Recipe,
    balance_stage,
    convert,
    load_checkpoint,
    prepare,
    quant_layers,
    quantize,
    save_checkpoint,
)

PLAIN = {"balance": {"kind": "none"}, "branch": {"svd": 0}}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Functional(nn.Module):
    """A convolution with taps of its own: few parameters, most of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(200, 200))
        self.taps = nn.Parameter(torch.randn(16, 3))

    def forward(self, x):
        taps = self.taps[:, None].repeat(1, 16, 1) * 0.1
        return nn.functional.conv1d(x.transpose(1, 2), taps, padding=1).transpose(1, 2)


class Reader(nn.Module):
    """A module that reads the weight of its layer and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def warnings_of(model, recipe=None, images=None):
    recipe = recipe or {"name": "w8a8", **PLAIN}
    return quantize(model.eval(), recipe, pictures() if images is None else images, progress=False)


@pytest.mark.parametrize("kind", ["none", "auto", "scale"])
def test_layers_that_calibration_never_reaches_stay_in_floating_point_and_are_named(kind):
    torch.manual_seed(0)
    model, x = Tokens(Reader()).eval(), pictures()
    with torch.no_grad():
        expected = model(x)
    report = warnings_of(model, {"name": "w8a8", "balance": {"kind": kind}}, x)
    assert list(report.bits) == ["head", "tail"] == [layer.name for layer in quant_layers(model)]
    idle = {layer.name for layer in report.skipped if "never reached" in layer.reason}
    assert idle == {"body.linear"}
    assert all(any(name in line for line in report.warnings) for name in idle)
    assert type(model.body.linear) is nn.Linear
    with torch.no_grad():
        assert (model(x) - expected).square().mean() < 1e-3 * expected.square().mean()


def test_a_layer_that_is_not_used_survives_its_file(tmp_path):
    def build(_):
        model = TinyNet()
        model.spare = nn.Conv2d(16, 16, 3)
        return model

    model, x = build(None).eval(), pictures()
    report = quantize(model, "w4a8", x, progress=False)
    assert "spare" in str(report) and type(model.spare) is nn.Conv2d
    save_checkpoint(model, tmp_path / "m.safetensors", {})
    loaded = load_checkpoint(tmp_path / "m.safetensors", build)
    assert not isinstance(loaded.spare, QuantLayer)
    assert torch.equal(loaded.spare.weight, model.spare.weight)
    assert torch.equal(loaded(x), model.eval()(x))


def test_a_plan_of_balancing_covers_layers_that_are_never_reached():
    recipe, x = Recipe.from_name("w4a4"), pictures()
    models = [TinyNet(), TinyNet()]
    for model in models:
        model.spare = nn.Linear(16, 16)
    convert(models[0], recipe)
    plan = balance_stage(models[0], recipe, CalibrationData(x, progress=False))
    assert isinstance(plan["spare"], LayerBalance)
    report = prepare(models[1], recipe, CalibrationData(x, progress=False), balance=plan)
    assert "spare" not in report.bits


def test_a_network_of_which_no_layer_is_reached_is_refused():
    class Idle(TinyNet):
        def forward(self, x):
            return x

    with pytest.raises(QuantFaceError, match="layer conv_in: saw no input during calibration"):
        quantize(Idle(), {"name": "w8a8", **PLAIN}, pictures(), progress=False)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (Attention, "body.attention", ["MultiheadAttention", "in_proj_weight", "%"]),
        (lambda: LastOnly(nn.LSTM(16, 16, batch_first=True)), "body.inner", ["LSTM", "weight_ih"]),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
            "body",
            ["Linear", "weight is computed by SpectralNorm"],
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
            "body",
            ["Linear", "weight is computed by WeightNorm"],
        ),
        (lambda: nn.utils.spectral_norm(nn.Linear(16, 16)), "body", ["spectral norm"]),
        (lambda: nn.utils.weight_norm(nn.Linear(16, 16)), "body", ["weight norm"]),
    ],
)
def test_large_groups_of_parameters_outside_of_layers_are_named(make, name, words):
    report = warnings_of(Tokens(make()))
    lines = [line for line in report.warnings if line.startswith(f"{name} (")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert lines[0].split(": ", 1)[1] in str(report)


class LastOnly(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def test_work_counts_where_parameters_are_few():
    model = Tokens(Functional())
    model.padding = nn.Embedding(400, 400)
    report = warnings_of(model)
    (line,) = (line for line in report.warnings if line.startswith("body (Functional)"))
    assert "of multiply-accumulates" in line and "taps" in line


def test_small_groups_are_not_named():
    model = TinyNet()
    model.table = nn.Parameter(torch.zeros(2, 3))
    assert quantize(model, "w8a8", pictures(), progress=False).warnings == ()


@pytest.mark.parametrize(
    ("kind", "width", "groups", "words"),
    [
        ("rotate", 36, 1, "body: found 36 channels, which no Hadamard order divides"),
        ("both", 36, 1, "in place of balance both it gets scale"),
        (["rotate", "scale"], 36, 1, "in place of balance rotate it gets none or scale"),
        ("auto", 36, 1, "in place of balance rotate, both it gets none or scale"),
        ("rotate", 32, 4, "body: found 32 channels in 4 groups, narrower than 16"),
        (
            "scale",
            8,
            1,
            "body: found 8 channels, narrower than 16; in place of balance scale it gets",
        ),
    ],
)
def test_balancing_that_cannot_be_had_is_named(kind, width, groups, words):
    model = nn.Sequential()
    model.head, model.body = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1, groups=groups)
    recipe = {"name": "w6a8", "balance": {"kind": kind}, "branch": {"svd": 0}}
    report = warnings_of(model, recipe)
    assert any(words in line for line in report.notes), report.notes
    assert words in str(report) and set(report.notes) <= set(report.warnings)


@pytest.mark.parametrize("kind", ["none", "auto", "scale"])
def test_balancing_that_can_be_had_is_not_named(kind):
    model = nn.Sequential()
    model.head, model.body = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 3, 1)
    recipe = {"name": "w6a8", "balance": {"kind": kind}, "branch": {"svd": 0}}
    assert warnings_of(model, recipe, torch.rand(2, 16, 8, 8)).warnings == ()


def test_layers_that_gptq_cannot_round_are_named():
    options = {"name": "w4a8", "weights": {"rounding": "gptq"}, **PLAIN}
    (line,) = quantize(TinyNet(), options, pictures(), progress=False).warnings
    assert line.startswith("body: found 2 groups of 72 columns, rounding gptq allows 1 group")


class Tied(nn.Module):
    """An embedding, a head with the same weight, and two layers with one weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.table, self.last = nn.Embedding(24, 16), nn.Linear(16, 24, bias=False)
        self.last.weight = self.table.weight
        self.tail = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x):
        h = self.head(x).movedim(1, -1)
        h = self.second(self.first(h).relu() + self.table(torch.arange(16) % 7).sum(0))
        return self.tail(self.last(h).movedim(-1, 1))


@pytest.mark.parametrize("kind", ["none", "auto", "scale"])
def test_tied_weights_are_saved_and_loaded(tmp_path, kind):
    torch.manual_seed(0)
    model, x = Tied().eval(), pictures()
    quantize(model, {"name": "w4a8", "balance": {"kind": kind}}, x, progress=False)
    save_checkpoint(model, tmp_path / "m.safetensors", {})
    loaded = load_checkpoint(tmp_path / "m.safetensors", lambda _: Tied())
    assert torch.equal(loaded(x), model(x))
