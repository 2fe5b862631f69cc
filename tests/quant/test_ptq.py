"""Preparation in one call: resumable, with widths by layer, and pictures that say something."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    CalibrationStore,
    Recipe,
    convert,
    prepare,
    quant_layers,
)

BITS = {"conv_in": (8, 8), "body": (3, 6), "linear": (4, 3), "line": (5, 5), "conv_out": (6, 4)}
METHOD = {"name": "w4a4", "branch": {"svd": 1, "distill": 1, "budget": 1}}


class Killed(Exception):
    pass


class Dying(list):
    """Pictures in the middle of whose n-th reading the process dies."""

    def __init__(self, images, reading, count):
        super().__init__(images)
        self.reading, self.count, self.readings = reading, count, 0

    def __iter__(self):
        self.readings += 1
        for number, image in enumerate(super().__iter__()):
            if self.readings == self.reading and number == self.count:
                raise Killed
            yield image


@pytest.mark.slow
@pytest.mark.parametrize("reading", [1, 2])
@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_preparation_goes_on_and_ends_the_same(tmp_path, monkeypatch, reading, every):
    images, start, seen = list(pictures(9)), TinyNet().eval(), []
    forward = TinyNet.forward
    monkeypatch.setattr(TinyNet, "forward", lambda net, x: (seen.append(1), forward(net, x))[1])

    def prepared(pictures, store=None):
        seen.clear()
        model = copy.deepcopy(start)
        prepare(model, METHOD, CalibrationData(pictures, 2, progress=False, store=store))
        return model

    whole = prepared(images)
    assert len(seen) == 10

    def store():
        return CalibrationStore(tmp_path / "calibration.safetensors", "key", every=every)

    with pytest.raises(Killed):
        prepared(Dying(images, reading, 7), store())
    resumed = prepared(images, store())
    saved = 3 // every * every
    # The first pass's last save stands when the second is killed.
    assert len(seen) == 10 - saved - (5 // every * every if reading == 2 else 0)
    before, after = whole.state_dict(), resumed.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    store().remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({**BITS, "head": (4, 4)}, "bit map: layer 'head' is not one that the recipe quantizes"),
        ({**BITS, "norm": (4, 4)}, "bit map: layer 'norm' is not one"),
        ({k: v for k, v in BITS.items() if k != "line"}, "bit map: layer 'line' is missing"),
        ({**BITS, "line": (1, 4)}, "bit map: layer 'line': bits: found 1"),
        ({**BITS, "line": (4, 9)}, "bit map: layer 'line': bits: found 9"),
        ({}, "bit map: layer 'conv_in' is missing"),
    ],
)
def test_a_bit_map_that_does_not_fit_is_refused_and_nothing_is_changed(bits, message):
    model = TinyNet()
    with pytest.raises(QuantFaceError, match=message):
        prepare(model, "w4a4", CalibrationData(pictures(), progress=False), bits=bits)
    assert not list(quant_layers(model))


def test_a_bit_map_says_every_width():
    model = TinyNet()
    report = convert(model, Recipe.from_name("w4a4"), BITS)
    assert report.bits == BITS
    assert {layer.name: layer.weight_spec.bits for layer in quant_layers(model)} == {
        name: widths[0] for name, widths in BITS.items()
    }


@pytest.mark.parametrize("kind", ["none", "auto"])
def test_pictures_that_say_nothing_are_refused(kind):
    options = {"name": "w4a4", "balance": {"kind": kind}}
    flat = pictures()
    flat[:, 1] = 0.25
    with pytest.raises(QuantFaceError, match=r"channel 1 is constant \(0\.25\)"):
        prepare(TinyNet(), options, CalibrationData(flat, progress=False))
    for bad in (torch.nan, torch.inf):
        broken = pictures()
        broken[3, 2, 0, 0] = bad
        with pytest.raises(QuantFaceError, match="layer conv_in: its input holds NaN or infinity"):
            prepare(TinyNet(), options, CalibrationData(broken, progress=False))


@pytest.mark.parametrize("kind", ["scale", "rotate", "both", "auto"])
def test_a_dead_channel_inside_the_network_is_no_obstacle(kind):
    model, x = TinyNet().eval(), pictures()
    # Affine parameters of the norm: channel 5 is 0 after the activation, at every position.
    model.norm.weight.data[5] = model.norm.bias.data[5] = 0
    model.line.weight.data[:, 3] = 0
    prepare(model, {"name": "w8a8", "balance": {"kind": kind}}, CalibrationData(x, progress=False))
    for layer in quant_layers(model):
        assert layer.balance.scale is None or bool(layer.balance.scale.isfinite().all())
    assert bool(model(x).isfinite().all())
