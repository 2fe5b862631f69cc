"""Zero points of channels: a better grid than a single zero point, kept, trained and saved."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from cost_helpers import Wide, converted, recipe_of, stored_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import TinyNet, far_from_zero, pictures
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    Recipe,
    convert,
    fold_trained,
    load_checkpoint,
    prepare,
    quant_layers,
    quantize,
    save_checkpoint,
    trainable,
)
from quantface_arch.quant.calibration.calibrate import fix_input_grid
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.cost.cost import total_cost
from quantface_arch.quant.cost.planned import checkpoint_cost, recipe_cost
from quantface_arch.quant.cost.stand_in import StandIn
from quantface_arch.quant.ops.channel_grid import channel_grid, zero_point_limits

OWN = {"activations": {"zero_points": "channel"}}
METHOD = {**recipe_of("both"), **OWN}


def shifted_inputs(spread, channels=8, seed=0):
    """Inputs (channels, 4000) of which each channel lies around another value."""
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(channels, 1, generator=generator)
    return centres + torch.randn(channels, 4000, generator=generator)


def layer_for(x, bits, zero_points, **options):
    """Return a linear layer whose input grid was fixed by x (channels, positions)."""
    net = nn.Sequential(nn.Linear(len(x), 4))
    activations = {"zero_points": zero_points, **options}
    convert(net, Recipe.from_dict({"name": f"w4a{bits}", "activations": activations}))
    observer = ActivationObserver("layer", -1, per_channel=True)
    observer(x.T)
    fix_input_grid(net[0], observer)
    return net[0]


def rounding_error(layer, x):
    return float((layer.quantize_input(x.T) - x.T).square().mean())


@settings(max_examples=30)
@given(
    bits=st.sampled_from((2, 3, 4, 6, 7)),
    spread=st.floats(0.5, 100),
    seed=st.integers(0, 1000),
)
def test_channels_that_lie_apart_are_rounded_more_finely(bits, spread, seed):
    x = shifted_inputs(spread, seed=seed)
    own, shared = (rounding_error(layer_for(x, bits, kind), x) for kind in ("channel", "tensor"))
    # At small spreads little is to be gained, and histograms of 512 bins cost a little.
    assert own < shared * (1.05 if spread < 3 or bits > 4 else 0.8)


@settings(max_examples=30)
@given(bits=st.sampled_from((2, 4, 7)), spread=st.floats(0, 1e4), seed=st.integers(0, 1000))
def test_every_level_fits_into_int8(bits, spread, seed):
    layer = layer_for(shifted_inputs(spread, seed=seed), bits, "channel")
    least, most = zero_point_limits(bits)
    zeros = layer.act_zero_point
    assert zeros.shape == (8,) and torch.equal(zeros, zeros.round())
    assert bool(((zeros >= least) & (zeros <= most)).all())
    integers = layer.quantize_input(torch.linspace(-1e6, 1e6, 999)[:, None].expand(-1, 8))
    assert float((integers / layer.act_scale).abs().max()) <= 127.001


def test_important_channels_decide_the_scale():
    x = torch.stack((torch.randn(4000), 20 * torch.randn(4000)))
    observer = ActivationObserver("layer", 0, per_channel=True)
    observer(x)
    spec = Recipe.from_dict({"name": "w4a4", **OWN}).activations
    narrow, wide = (
        channel_grid(observer.channel_counts, observer.reach, spec, importance)[0]
        for importance in (torch.tensor([1.0, 1e-6]), torch.tensor([1e-6, 1.0]))
    )
    assert narrow < wide / 3


def test_an_input_of_zeros_has_a_valid_grid():
    layer = layer_for(torch.zeros(8, 10), 4, "channel")
    assert layer.act_scale == 1 and not layer.act_zero_point.any()


def test_histograms_of_channels_double_with_that_of_the_tensor():
    """The order of the inputs does not matter."""
    parts = [scale * torch.randn(4, 999) for scale in (1, 30, 0.2)]
    found = []
    for order in ((0, 1, 2), (0, 2, 1)):
        observer = ActivationObserver("layer", 0, per_channel=True)
        for place in order:
            observer(parts[place])
        assert observer.channel_counts.sum(1).tolist() == [3 * 999] * 4
        found.append(observer.channel_counts)
    assert torch.equal(*found)


def test_padding_stays_zero_where_a_channel_has_no_level_for_zero():
    layer, x = far_from_zero()
    rounded = nn.functional.pad(layer.quantize_input(x), (1, 1, 1, 1))
    wanted = nn.functional.conv2d(rounded, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), wanted)


def test_layers_of_eight_bits_keep_one_zero_point():
    net = TinyNet().eval()
    quantize(net, {**METHOD, "eight_bit": ["conv_in"]}, pictures(2), progress=False)
    shapes = {layer.name: layer.act_zero_point.shape for layer in quant_layers(net)}
    assert shapes.pop("conv_in") == ()
    assert all(shape == (16,) for shape in shapes.values())


@pytest.mark.parametrize("bounds", [True, "step"])
def test_training_moves_zero_points_and_folding_changes_no_output(bounds, tmp_path):
    teacher = TinyNet().eval()
    student, x = copy.deepcopy(teacher), pictures()
    prepare(student, METHOD, CalibrationData(x, progress=False))
    before = student(x).detach()
    parameters = trainable(student, bounds=bounds)
    assert torch.equal(student(x), before)
    start = {layer.name: layer.act_zero_point.clone() for layer in quant_layers(student)}
    optimizer, losses = torch.optim.Adam(parameters, lr=3e-2), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = student(x).detach()
    fold_trained(student)
    assert torch.equal(student(x), trained)
    if bounds is True:
        moved = [not torch.equal(start[x.name], x.act_zero_point) for x in quant_layers(student)]
        assert any(moved)
    path = tmp_path / "model.safetensors"
    save_checkpoint(student, path, {}, dtype=torch.float32)
    loaded = load_checkpoint(path, lambda _: TinyNet())
    assert torch.equal(loaded(x), trained)


def test_bytes_are_those_of_the_file_before_and_after_calibration(tmp_path):
    meta, work, recipe = converted(METHOD)
    foreseen = recipe_cost(meta, recipe, work)
    stand_in = StandIn.of(meta, recipe, {})
    net, path = Wide().eval(), tmp_path / "q.safetensors"
    quantize(net, METHOD, pictures(2), progress=False)
    save_checkpoint(net, path, {})
    assert total_cost(foreseen).bytes == stored_bytes(path)
    assert checkpoint_cost(path, Wide().to("meta"), work) == foreseen
    assert path.stat().st_size <= stand_in.bytes < path.stat().st_size + 32 * len(stand_in.tensors)
    stand_in.save(path)
    load_checkpoint(path, lambda _: Wide())


def test_a_file_whose_zero_points_are_beyond_the_grid_is_refused(tmp_path):
    net, path = TinyNet().eval(), tmp_path / "q.safetensors"
    quantize(net, METHOD, pictures(2), progress=False)
    save_checkpoint(net, path, {})
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in set(file.keys())}
    # Older releases must refuse the file instead of reading it without its zero points.
    assert json.loads(metadata["quantface"])["format_version"] == 2
    tensors["linear.act_zero_point"][3] = -113
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(QuantFaceError, match=r"linear\.act_zero_point: .*not in \[-112, 127\]"):
        load_checkpoint(path, lambda _: TinyNet())


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("activations", {"symmetric": True}, "zero_points: found channel, which needs symmetric"),
        ("activations", {"granularity": "token"}, "which needs .* granularity: tensor"),
        ("activations", {"zero_points": "group"}, "zero_points: found 'group', allowed are"),
        ("weights", {"symmetric": False, "granularity": "tensor"}, "which only inputs allow"),
    ],
)
def test_what_does_not_go_together_is_named(part, options, message):
    with pytest.raises(QuantFaceError, match=message):
        Recipe.from_dict({"name": "w4a4", part: {"zero_points": "channel", **options}})


def test_a_range_that_is_not_searched_gives_all_channels_one_zero_point():
    x = shifted_inputs(5)
    assert len(layer_for(x, 4, "channel").act_zero_point.unique()) > 1
    assert len(layer_for(x, 4, "channel", range="minmax").act_zero_point.unique()) == 1
