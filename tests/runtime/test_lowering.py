"""Lowered layers compute what quantized layers compute, in operators that compilers support."""

from __future__ import annotations

import itertools

import pytest
import torch
from quant_helpers import TinyNet, far_from_zero, pictures, quantized_layers, sqnr
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import LayerBalance, Recipe, convert, quant_layers, quantize
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.cost.stand_in import stand_in_layer
from quantface_arch.quant.ops.hadamard import rotate
from quantface_arch.runtime.lowering import Lowering, Rotation, folded_weight, work
from quantface_arch.runtime.processor import SPARE

KINDS = ("none", "scale", "rotate", "both")


class Net(nn.Module):
    """A layer of every type, each wide enough to be rotated."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2, padding_mode="reflect")
        self.linear = nn.Linear(32, 32)
        self.line = nn.Conv1d(32, 16, 3, padding=1, bias=False)

    def forward(self, x):
        h = self.linear(self.grouped(self.conv(x)).movedim(1, -1)).movedim(-1, 1)
        return self.line(h.flatten(2))


def layers_of(kind, name="w4a4", **options):
    return quantized_layers(Net(), (16, 8, 8), kind, name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["w4a4", "w4a6", "w3a5", "w4a8", "w8a8"])
def test_faithful_layers_equal_the_reference(kind, name):
    for layer, x in layers_of(kind, name):
        with torch.no_grad():
            assert sqnr(layer(x), Lowering("faithful")(layer)(x)) > 60, layer.name


def test_regular_rotations_and_rounded_branches_equal_the_reference():
    methods = {
        "balance": {"kind": "rotate", "hadamard": "regular"},
        "branch": {"svd": 2, "budget": 1, "bits": 8},
    }
    for layer, x in layers_of("rotate", **methods):
        assert layer.balance.regular and layer.branch_bits == 8
        for mode in ("faithful", "folded"):
            with torch.no_grad():
                least = 60 if mode == "faithful" else 10
                assert sqnr(layer(x), Lowering(mode)(layer)(x)) > least, layer.name


@pytest.mark.parametrize("kind", KINDS)
def test_zero_points_of_channels_are_kept(kind):
    for layer, x in layers_of(kind, "w4a4", activations={"zero_points": "channel"}):
        assert layer.act_zero_point.unique().numel() > 1
        with torch.no_grad():
            assert sqnr(layer(3 * x), Lowering("faithful")(layer)(3 * x)) > 60, layer.name


def test_padding_is_zero_where_a_channel_has_no_level_for_zero():
    layer, x = far_from_zero()
    with torch.no_grad():
        assert sqnr(layer(x), Lowering("faithful")(layer)(x)) > 60


@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_of_both_kinds_are_kept(symmetric):
    both = {"symmetric": symmetric}
    for layer, x in layers_of("none", "w4a4", activations=both, weights=both):
        with torch.no_grad():
            # The input lies far beyond the range, where the grid must clip.
            assert sqnr(layer(3 * x), Lowering("faithful")(layer)(3 * x)) > 60, layer.name


def test_a_folded_layer_rounds_scaled_inputs_as_the_reference_does():
    """The second rounding of the weight, to 8 bits, is all that differs."""
    for layer, x in layers_of("scale", "w8a8", branch={"svd": 0}):
        with torch.no_grad():
            assert sqnr(layer(x), Lowering("folded")(layer)(x)) > 60, layer.name


@pytest.mark.parametrize("kind", KINDS)
def test_folding_multiplies_branch_and_balancing_out(kind):
    for layer, x in layers_of(kind, "w4a8"):
        with torch.no_grad():
            balanced = layer.balance_input(x)
            apart = layer.product(balanced, layer.weight, layer.bias) + (
                0 if layer.branch_down is None else layer.branch(balanced)
            )
            assert sqnr(apart, layer.product(x, folded_weight(layer), layer.bias)) > 100
            lowered = Lowering("folded")(layer)
            assert sqnr(apart, lowered(x)) > 30
        assert lowered.rotation is lowered.branch_down is None
        assert (lowered.multiplier is not None) == (layer.balance.kind == "scale")


def test_auto_folds_where_inputs_have_eight_bits():
    for name, folded in (("w4a8", True), ("w4a6", False)):
        for layer, _ in layers_of("scale", name):
            assert Lowering()(layer).folded is folded


def test_weights_are_the_very_integers_and_no_float_copy_is_kept():
    for layer, _ in layers_of("scale"):
        lowered = Lowering("faithful")(layer)
        integer = lowered.integer
        assert integer.weight.dtype == torch.int8 and integer.weight.abs().max() <= 8
        assert torch.equal(integer.weight * integer.weight_scale, layer.weight)
        floats = [value for value in lowered.parameters() if value.shape == layer.weight.shape]
        assert not floats


def test_a_bit_is_spared_where_pairs_of_products_would_overflow():
    for name in ("w4a8", "w8a8"):
        for layer, x in layers_of("scale", name):
            for mode in ("faithful", "folded"):
                lowered = Lowering(mode, SPARE)(layer)
                assert lowered.integer.weight.abs().max() <= SPARE
                with torch.no_grad():
                    assert sqnr(layer(x), lowered(x)) > 25


def test_groups_of_weights_are_rounded_again():
    grouped = {"granularity": "group", "group": 8}
    for layer, x in layers_of("none", "w4a8", weights=grouped):
        with torch.no_grad():
            assert sqnr(layer(x), Lowering("faithful")(layer)(x)) > 30


@pytest.mark.parametrize(
    ("segments", "regular"),
    [(((1, 32),), False), (((2, 16),), False), (((1, 12), (1, 20)), False), (((2, 16),), True)],
)
@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_rotation_is_that_of_the_method(segments, regular, axis):
    x = torch.randn(2, 32, *[5] * (-1 - axis))
    wanted = rotate(x, segments, axis, regular=regular)
    torch.testing.assert_close(Rotation(segments, axis, regular)(x), wanted)


def test_what_only_the_reference_can_do_is_named():
    for layer, _ in layers_of("none", "w4a8", activations={"granularity": "token"}):
        with pytest.raises(QuantFaceError, match=f"layer {layer.name}: input ranges .* reference"):
            Lowering()(layer)


def test_an_unknown_way_is_named_with_those_that_exist():
    with pytest.raises(QuantFaceError, match="mode: found 'fast', allowed are auto, faithful"):
        Lowering("fast")


def test_a_whole_network_follows():
    net, x = TinyNet().eval(), pictures(2)
    quantize(net, "w4a8", pictures(), progress=False)
    with torch.no_grad():
        wanted = net(x)
        for name, layer in list(net.named_modules()):
            if any(layer is found for found in quant_layers(net)):
                setattr(net, name, Lowering("faithful")(layer))
        assert sqnr(wanted, net(x)) > 40


def test_choices_of_equal_work_are_lowered_alike():
    with torch.device("meta"):
        net = TinyNet()
    convert(net, Recipe.from_name("w4a4"))
    found = {}
    for *bits, rank, kind in itertools.product((4, 6, 8), (4, 6, 8), (0, 3), KINDS):
        choice = LayerChoice(*bits, rank, kind)
        lowered = Lowering()(stand_in_layer(net.conv_out, choice, LayerBalance(None, ((1, 16),))))
        tensors = {key: (x.shape, x.dtype) for key, x in lowered.state_dict().items()}
        is_clamped = lowered.integer.levels != lowered.integer.limits
        form = (is_clamped, lowered.rotation is not None, tensors)
        assert found.setdefault(work(choice), form) == form
    # Of more work, a layer has at least the tensors that it has of less.
    for less, more in itertools.permutations(found, 2):
        if all(a <= b for a, b in zip(less, more, strict=True)):
            assert found[less][:2] <= found[more][:2]
            assert found[less][2].keys() <= found[more][2].keys()
