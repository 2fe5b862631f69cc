"""GPTQ: on the grid, better for the layer's output than rounding to nearest, from real inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    CalibrationStore,
    Recipe,
    calibrating,
    convert,
    prepare,
    quant_layers,
)
from quantface_arch.quant.ops.gptq import BLOCK, check_memory, gptq, system_memory
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point

# Values in the Hessians of TinyNet, whose grouped layer needs none.
HESSIANS = 27**2 + 16**2 + 16**2 + 144**2
PLAIN = {"balance": {"kind": "none"}, "branch": {"svd": 0}}


def correlated(positions, columns):
    """Inputs with few strong directions, as those of real layers have."""
    mixing = torch.randn(columns, columns) * torch.logspace(0, -2, columns)
    return torch.randn(positions, columns) @ mixing.T


@pytest.mark.parametrize("columns", [24, BLOCK + 40])
@pytest.mark.parametrize("symmetric", [True, False])
def test_output_error_is_less_than_that_of_nearest_and_values_are_on_the_grid(columns, symmetric):
    x, weight = correlated(2000, columns), torch.randn(16, columns)
    limits = grid(3, symmetric)
    scale, zero = scale_and_zero_point(weight.amin(1), weight.amax(1), 3, symmetric)
    steps = scale[:, None], zero[:, None]
    nearest = fake_quantize(weight, *steps, *limits)
    found = gptq(weight, x.T @ x, *steps, *limits)
    errors = [((value - weight) @ x.T).square().mean() for value in (found, nearest)]
    assert errors[0] < 0.7 * errors[1]
    assert torch.equal(found, fake_quantize(found, *steps, *limits))


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_nearest():
    weight = torch.randn(8, 12)
    scale, zero = scale_and_zero_point(weight.amin(1), weight.amax(1), 4, True)
    steps = scale[:, None], zero[:, None]
    found = gptq(weight, torch.eye(12), *steps, *grid(4, True))
    assert torch.equal(found, fake_quantize(weight, *steps, *grid(4, True)))


def test_columns_that_are_never_used_and_hessians_that_are_not_finite():
    x, weight = correlated(100, 12), torch.randn(4, 12)
    x[:, 5] = 0
    steps = torch.full((4, 1), 0.2), torch.zeros(4, 1)
    assert bool(gptq(weight, x.T @ x, *steps, -7, 7).isfinite().all())
    with pytest.raises(QuantFaceError, match="NaN or infinity"):
        gptq(weight, torch.full((12, 12), torch.nan), *steps, -7, 7)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (3, 7, 6)),
        (nn.Conv1d(6, 5, 3, dilation=2), (3, 6, 20)),
        (nn.Conv2d(6, 5, (3, 2), dilation=(1, 2)), (3, 6, 9, 11)),
        (nn.Conv2d(6, 5, 3), (6, 9, 9)),
    ],
)
def test_columns_are_what_the_weight_is_multiplied_by(layer, shape):
    model = nn.Sequential(layer)
    convert(model, Recipe.from_dict({"name": "w4a8", **PLAIN}))
    x = torch.randn(shape)
    found = model[0].columns(x) @ model[0].weight.flatten(1).T
    product = model[0].product(x, model[0].weight, None)
    product = product.unsqueeze(0) if product.ndim == -model[0].channel_axis else product
    wanted = product.movedim(model[0].channel_axis, -1).reshape(found.shape)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_network_rounded_by_gptq_is_nearer_and_its_grouped_layer_still_works():
    start, x = TinyNet().eval(), pictures(12)
    wanted, errors = start(x).detach(), []
    for rounding in ("nearest", "gptq"):
        model = copy.deepcopy(start)
        options = {"name": "w3a8", "weights": {"rounding": rounding, "range": "minmax"}, **PLAIN}
        prepare(model, options, CalibrationData(x, progress=False))
        errors.append((model(x).detach() - wanted).square().mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(("stored", "free"), [(False, 8 * HESSIANS), (True, 16 * HESSIANS)])
def test_hessians_beyond_the_free_memory_are_refused_before_any_image_is_read(
    monkeypatch, tmp_path, stored, free
):
    def unread():
        raise AssertionError("an image was read")
        yield

    options = {"name": "w4a8", "weights": {"rounding": "gptq"}, **PLAIN}
    store = CalibrationStore(tmp_path / "calib.safetensors", "key") if stored else None
    monkeypatch.setattr("quantface_arch.quant.ops.gptq.system_memory", lambda: free - 1)
    with pytest.raises(
        QuantFaceError, match=r"gptq needs 0\.0 GB for the Hessians of 4 layers, 0\.0"
    ):
        prepare(TinyNet(), options, CalibrationData(unread(), progress=False, store=store))
    monkeypatch.setattr("quantface_arch.quant.ops.gptq.system_memory", lambda: free)
    data = CalibrationData(pictures(), progress=False, store=store)
    prepare(TinyNet(), options, data)


def test_the_free_memory_is_what_the_system_says():
    free = system_memory()
    assert free is None or 2**20 < free < 2**50
    check_memory([16])
    with pytest.raises(QuantFaceError, match="gptq needs 8000000000"):
        check_memory([10**9])


def test_hessians_are_kept_where_they_are_wanted_and_come_back():
    model = TinyNet().eval()
    options = {"name": "w4a8", "weights": {"rounding": "gptq"}, **PLAIN}
    convert(model, Recipe.from_dict(options))
    with calibrating(model, keep_hessians=True) as calibration:
        model(pictures())
    sizes = {name: len(seen.hessian) for name, seen in calibration.observers.items()}
    # The body has two groups of channels.
    assert sizes == {"conv_in": 27, "body": 0, "linear": 16, "line": 16, "conv_out": 144}
    state = calibration.state_dict()
    with calibrating(model, keep_hessians=True) as other:
        other.load_state_dict(state)
        model(pictures())
    for name, seen in other.observers.items():
        once = calibration.observers[name].hessian
        assert bool((seen.hessian.diag().sum() > 1.5 * once.diag().sum()) if sizes[name] else True)
    with calibrating(model) as plain:
        model(pictures())
    assert not any(seen.hessian.numel() for seen in plain.observers.values())
    assert all(layer.rank == 0 for layer in quant_layers(model))
