"""The account of a network: work against brute force, operations of parts, sums against parts."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from cost_helpers import Attention, Wide, by_name, converted
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import TinyNet, pictures
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantface_arch.quant import LayerBalance, Recipe, convert, quant_layers
from quantface_arch.quant.cost.cost import Cost, network_cost, total_cost
from quantface_arch.quant.cost.macs import LayerWork, count_products, count_work
from quantface_arch.quant.ops.packing import pack

WIDTHS = st.integers(2, 8)


@settings(max_examples=40)
@given(
    groups=st.sampled_from((1, 2, 3)),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    batch=st.integers(1, 2),
)
def test_macs_of_convolutions_are_what_ones_add_up_to(
    groups, inputs, outputs, kernel, stride, dilation, padding, batch
):
    layer = nn.Conv2d(
        inputs * groups,
        outputs * groups,
        (kernel, 2),
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        bias=False,
        padding_mode="replicate",
    )
    nn.init.ones_(layer.weight)
    x = torch.ones(batch, inputs * groups, 7, 6)
    work = count_work(nn.Sequential(layer), x)["0"]
    assert work == LayerWork(round(float(layer(x).detach().sum())), x.numel(), (tuple(x.shape),))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 3, bias=False), (2, 7, 5)), (nn.Conv1d(4, 6, 3, 2, bias=False), (2, 4, 9))],
)
def test_macs_of_other_layers_too_and_layers_that_run_twice_count_twice(layer, shape):
    nn.init.ones_(layer.weight)
    x = torch.ones(shape)
    found = count_work(nn.Sequential(layer), x)["0"]
    assert found == LayerWork(int(layer(x).detach().sum()), x.numel(), (shape,))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x), self.layer(x)

    twice = count_work(Twice(), x)["layer"]
    assert twice == LayerWork(2 * found.macs, 2 * found.inputs, 2 * found.shapes)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_are_those_of_attention_and_not_of_layers(device):
    x = torch.rand(2, 3, 4, 5, device=device)
    model = nn.Sequential(Attention().to(device), nn.Identity())
    # QKᵀ and softmax·V: two heads, 20 positions by 20, 4 channels each, 2 pictures.
    assert count_products(model, x) == {"0": 2 * 2 * 2 * 20 * 20 * 4}
    assert count_products(TinyNet().to(device), x) == {}


def test_branch_and_balancing_are_the_products_that_the_layers_do(wide_model):
    x = pictures(1)
    ran = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, xs: ran.update({m.name: xs[0]}))
        for layer in quant_layers(wide_model)
    ]
    work = count_work(wide_model, x)
    for handle in handles:
        handle.remove()
    found = by_name(network_cost(wide_model, work))
    kinds = set()
    for layer in quant_layers(wide_model):
        cost, seen = found[layer.name].cost, ran[layer.name]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            balanced = layer.balance_input(seen)
        assert cost.additions == counter.get_total_flops() // 2
        assert cost.scalings == (0 if layer.balance.scale is None else seen.numel())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if layer.rank:
                layer.branch(balanced)
        assert cost.branch_macs == counter.get_total_flops() // 2
        kinds |= {(layer.balance.kind, layer.rank > 0)}
        entry = found[layer.name]
        assert (entry.balance, entry.rank) == (layer.balance.kind, layer.rank)
    assert {rank for _, rank in kinds} == {True, False} and len({kind for kind, _ in kinds}) > 1


@pytest.mark.parametrize("segments", [((1, 48),), ((2, 24),), ((1, 32), (1, 16)), ()])
def test_a_rotation_costs_the_sum_of_its_factors_at_every_input(segments):
    model, work, _ = converted("w4a4")
    balances = {"linear": LayerBalance(None, segments)}
    cost = by_name(network_cost(model, work, balances=balances))["linear"].cost
    per_position = {((1, 48),): 48 * (12 + 4), ((2, 24),): 48 * (12 + 2), (): 0}
    expected = per_position.get(segments, 32 * (16 + 2) + 16 * 16)
    assert cost.additions == 256 * expected
    assert cost.balance_operations == cost.additions / 2
    assert cost.bit_operations == 256 * 48 * 48 * 16 + cost.additions * 16
    assert cost.balance_bytes == 0


@given(weights=WIDTHS, activations=WIDTHS)
@settings(max_examples=15)
def test_bit_operations_follow_both_widths_and_operations_the_larger(weights, activations):
    bits = dict.fromkeys(("conv_in", "body", "linear", "line", "conv_out"), (weights, activations))
    model, work, _ = converted("w4a4", bits)
    cost = total_cost(network_cost(model, work))
    assert cost.macs == sum(done.macs for done in work.values()) > 0
    assert cost.bit_operations == cost.macs * weights * activations
    assert cost.operations == cost.macs * max(weights, activations) / 32
    reductions = cost.reductions
    assert reductions["bit_operations"] == pytest.approx(1 - weights * activations / 1024)
    assert reductions["operations"] == pytest.approx(1 - max(weights, activations) / 32)
    small = nn.Sequential(nn.Linear(3, 5))
    convert(small, Recipe.from_name(f"w{weights}a{activations}"))
    packed = pack(torch.zeros(15, dtype=torch.uint8), weights).numel()
    assert total_cost(network_cost(small, {})).weight_bytes == packed


def test_a_branch_counts_at_16_bits_and_a_scale_too():
    model, work, _ = converted("w4a4")
    scale = torch.empty(48, device="meta")
    plain = by_name(network_cost(model, work))["linear"].cost
    found = network_cost(model, work, None, {"linear": 5}, {"linear": LayerBalance(scale)})
    cost = by_name(found)["linear"].cost
    numbers = 5 * (48 + 48)
    assert cost.branch_bytes == 2 * numbers and cost.balance_bytes == 4 * 48
    assert (cost.branch_macs, cost.scalings) == (256 * numbers, 256 * 48)
    more = cost.branch_macs + cost.scalings
    assert cost.operations - plain.operations == more / 2
    assert cost.bit_operations - plain.bit_operations == more * 256


def test_with_strides_balancing_goes_by_inputs_and_branches_by_outputs():
    model = nn.Sequential(nn.Conv2d(16, 4, 3, stride=2))
    work = count_work(model, torch.rand(1, 16, 9, 9))
    convert(model, Recipe.from_name("w4a4"))
    balance = LayerBalance(torch.ones(16), ((1, 16),))
    cost = total_cost(network_cost(model, work, None, {"0": 2}, {"0": balance}))
    assert (cost.scalings, cost.additions) == (81 * 16, 81 * 16 * 16)
    assert (cost.macs, cost.branch_macs) == (16 * 4 * 16 * 9, 16 * 2 * (16 * 9 + 4))


def test_totals_are_sums_and_every_parameter_counts_once(wide_model):
    work, products = count_work(wide_model, pictures(1)), {"attention": 7}
    entries = network_cost(wide_model, work, products)
    cost = total_cost(entries)
    for key, value in asdict(cost).items():
        assert value == sum(getattr(entry.cost, key) for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
    assert cost.parameters == sum(value.numel() for value in Wide().parameters())
    assert cost.product_macs == 7
    without = total_cost(network_cost(wide_model, work))
    assert without.operations == cost.operations and without.reductions == cost.reductions
    shares = (cost.main_operations, cost.branch_operations, cost.balance_operations)
    assert cost.operations == sum(shares) and min(shares) > 0
    kinds = (cost.weight_bytes, cost.step_bytes, cost.branch_bytes, cost.balance_bytes)
    assert cost.bytes == sum(kinds) + cost.float_bytes and min(kinds) > 0
    assert {entry.name for entry in entries if entry.is_layer} == work.keys()


def test_shared_tensors_and_float_layers():
    model = TinyNet()
    model.conv_in.register_buffer("table", torch.zeros(10, dtype=torch.int64))
    model.linear.bias = model.line.bias
    model.copy = model.norm
    work = count_work(model, pictures(1))
    cost = total_cost(network_cost(model, work))
    assert cost.parameters == sum(value.numel() for value in model.parameters())
    assert cost.bytes == cost.float_bytes == 2 * cost.parameters + 80
    assert cost.operations == cost.macs / 2 and cost.bit_operations == cost.macs * 256
    assert total_cost([]) == Cost() and set(Cost().reductions.values()) == {0.0}
