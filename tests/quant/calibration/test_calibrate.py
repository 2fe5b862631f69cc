"""Calibration watches, changes nothing before apply(), and always lets go."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import TinyNet, converted_net, pictures
from torch import nn

from quantface_arch import quant
from quantface_arch.errors import QuantFaceError


@pytest.fixture
def model():
    return converted_net("w4a8")


def test_nothing_changes_before_apply(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with quant.calibrating(model) as calibration:
        model(pictures())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(layer.state is quant.State.CALIBRATING for layer in quant.quant_layers(model))
    calibration.apply()
    assert all(layer.state is quant.State.QUANTIZED for layer in quant.quant_layers(model))


def test_observers_are_gone_after_an_exception(model):
    with pytest.raises(RuntimeError), quant.calibrating(model):
        assert all(layer.observer is not None for layer in quant.quant_layers(model))
        raise RuntimeError
    assert all(layer.observer is None for layer in quant.quant_layers(model))


def test_values_that_are_not_finite_name_the_layer_and_leave_no_observer(model):
    model.conv_in.bias.data[0] = torch.nan
    with (
        pytest.raises(QuantFaceError, match="layer body: its input holds NaN"),
        quant.calibrating(model),
    ):
        model(pictures())
    assert all(layer.observer is None for layer in quant.quant_layers(model))


def test_a_layer_that_saw_nothing_is_named_and_nothing_is_applied(model):
    with quant.calibrating(model) as calibration:
        model.conv_in(pictures())
    with pytest.raises(QuantFaceError, match="layer body: saw no input"):
        calibration.apply()
    assert model.conv_in.state is quant.State.CALIBRATING


def test_a_weight_that_is_not_finite_is_named(model):
    with quant.calibrating(model) as calibration:
        model(pictures())
    model.line.weight.data[0] = torch.inf
    with pytest.raises(QuantFaceError, match="layer line: its weight holds NaN or infinity"):
        calibration.apply()


def test_a_model_without_quantized_layers_is_refused():
    with pytest.raises(QuantFaceError, match="no quantized layer"), quant.calibrating(TinyNet()):
        pass


def test_a_second_calibration_moves_inputs_only(model):
    weights = []
    for factor in (1, 3):
        with quant.calibrating(model) as calibration:
            model(factor * pictures())
        calibration.apply()
        weights.append(model.conv_in.weight)
    assert weights[0] is weights[1]
    assert model.conv_in.act_high > 2


class Killed(Exception):
    pass


def killed_after(images, count):
    for number, image in enumerate(images):
        if number == count:
            raise Killed
        yield image


def quantized(images, store=None):
    torch.manual_seed(2)
    net = TinyNet()
    plain = {"name": "w4a8", "balance": {"kind": "none"}, "branch": {"svd": 0}}
    quant.quantize(net, plain, images, batch_size=2, progress=False, store=store)
    return net


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    images = list(pictures(9))
    path = tmp_path / "calib.safetensors"
    with pytest.raises(Killed):
        quantized(killed_after(images, 5), quant.CalibrationStore(path, "key", every=1))
    calls = []
    forward = TinyNet.forward
    monkeypatch.setattr(
        TinyNet, "forward", lambda net, x: (calls.append(len(x)), forward(net, x))[1]
    )
    resumed = quantized(images, quant.CalibrationStore(path, "key", every=1))
    assert calls == [2, 2, 1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resumed.state_dict().values(), quantized(images).state_dict().values(), strict=True
        )
    )


@pytest.mark.parametrize("damage", ["other key", "truncated", "absent"])
def test_statistics_that_do_not_fit_are_not_used(tmp_path, damage):
    images = list(pictures(4))
    path = tmp_path / "calib.safetensors"
    quantized(images, quant.CalibrationStore(path, "key", every=1))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    if damage == "absent":
        path.unlink()
    store = quant.CalibrationStore(path, "other" if damage == "other key" else "key")
    net = TinyNet()
    quant.convert(net, quant.Recipe.from_name("w4a8"))
    with quant.calibrating(net) as calibration:
        assert store.load(calibration) == 0
        assert not any(observer.calls for observer in calibration.observers.values())


def test_samples_of_any_layout_are_kept(tmp_path):
    """Attention hands its layers transposed views, and files hold contiguous tensors alone."""
    net = nn.Sequential(nn.Linear(4, 4))
    quant.convert(net, quant.Recipe.from_name("w4a8"))
    store = quant.CalibrationStore(tmp_path / "calib.safetensors", "key", every=1)
    with quant.calibrating(net, keep_samples=True) as calibration:
        net(torch.rand(1, 4, 5).transpose(1, 2))
    store.save(calibration, 1)
    assert store.load(calibration) == 1
