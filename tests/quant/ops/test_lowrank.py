"""Branches: the best low-rank part of a weight, within what a layer and a model may have."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import BranchSpec, CalibrationData, Recipe, convert, prepare, quant_layers
from quantface_arch.quant.calibration.selection import branch_ranks
from quantface_arch.quant.nn.layers import State
from quantface_arch.quant.ops.lowrank import (
    EXACT,
    branch_parameters,
    choose_ranks,
    full_rank,
    svd_factors,
    zero_factors,
)

SHAPES = [(24, 40), (40, 24), (16, 8, 3), (12, 16, 3, 3), (3, 16, 3, 3)]


def product(down, up):
    return (up @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_factors_are_the_best_of_their_rank(shape, rank):
    weight = torch.randn(shape)
    down, up = svd_factors(weight, rank)
    assert down.shape == (rank, *shape[1:])
    assert up.shape == (shape[0], rank)
    # Eckart and Young: what is left are the singular values that were not taken.
    left = torch.linalg.svdvals(weight.flatten(1))[rank:].norm()
    assert (weight - product(down, up)).norm() == pytest.approx(float(left), rel=1e-4, abs=1e-5)


def test_both_factors_carry_the_same_share():
    down, up = svd_factors(torch.randn(24, 40), 4)
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_shrinks_with_the_rank_down_to_nothing(shape):
    weight = torch.randn(shape)
    most = full_rank(weight)
    left = [(weight - product(*svd_factors(weight, rank))).norm() for rank in range(most + 1)]
    assert all(a > b for a, b in pairwise(left))
    assert left[0] == weight.norm()
    assert left[-1] < 1e-5 * weight.norm()


def test_the_randomized_path_is_close_to_the_exact_one():
    basis = torch.linalg.qr(torch.randn(EXACT + 88, EXACT + 88)).Q
    spectrum = 1 / torch.arange(1, EXACT + 89)
    weight = basis * spectrum @ basis.T.roll(7, 0)
    exact = spectrum[8:].norm()
    state = torch.get_rng_state()
    down, up = svd_factors(weight, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert (weight - product(down, up)).norm() < exact * 1.001
    again = svd_factors(weight, 8)
    assert torch.equal(down, again[0]) and torch.equal(up, again[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_branch_that_was_not_trained_adds_nothing(shape):
    weight = torch.randn(shape)
    down, up = zero_factors(weight, 3, seed=1)
    assert not product(down, up).any()
    assert down.std() > 0
    assert torch.equal(down, zero_factors(weight, 3, seed=1)[0])
    assert not torch.equal(down, zero_factors(weight, 3, seed=2)[0])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(16, 12), (5, 16)),
        (nn.Conv1d(16, 12, 3, padding=1), (2, 16, 9)),
        (nn.Conv2d(16, 12, 3, padding=2, dilation=2), (2, 16, 9, 9)),
        (nn.Conv2d(16, 12, 3, stride=2, padding=1, padding_mode="reflect"), (2, 16, 9, 9)),
        (nn.Conv2d(16, 12, 3, padding=1, padding_mode="circular"), (2, 16, 9, 9)),
    ],
)
@pytest.mark.parametrize(("svd", "distill"), [(3, 0), (3, 2), (12, 0), (0, 2)])
def test_branch_and_residual_together_are_the_layer(module, shape, svd, distill):
    model, x = nn.Sequential(module), torch.randn(shape)
    weight, expected = module.weight.detach().clone(), module(x)
    convert(model, Recipe.from_name("w4a4"))
    layer = model[0]
    layer.state = State.FLOAT
    layer.add_branch(svd, distill)
    assert layer.rank == svd + distill
    low = product(layer.branch_down, layer.branch_up)
    torch.testing.assert_close(layer.branch(x), layer.product(x, low, None), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low + layer.weight, weight)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    if svd == 12:
        assert layer.weight.norm() < 1e-5 * weight.norm()
    if svd == 0:
        assert torch.equal(layer.weight, weight)


def weights():
    return {
        "a.wide": torch.randn(64, 64),
        "a.narrow": torch.randn(8, 64),
        "b.conv": torch.randn(32, 16, 3, 3),
    }


PARAMETERS = sum(weight.numel() for weight in weights().values())


@pytest.mark.parametrize("cap", [0.1, 0.25, 1.0])
@pytest.mark.parametrize(("svd", "distill"), [("auto", 0), ("auto", 4), (4, 4), (8, 0), (0, 8)])
def test_ranks_keep_to_cap_and_budget(cap, svd, distill):
    spec = BranchSpec(svd=svd, distill=distill, cap=cap, budget=0.6)
    ranks = choose_ranks(weights(), spec, PARAMETERS)
    assert ranks.keys() == weights().keys()
    for name, pair in ranks.items():
        assert sum(pair) <= cap * full_rank(weights()[name])
        assert min(pair) >= 0
    spent = sum(branch_parameters(weights()[name], sum(pair)) for name, pair in ranks.items())
    assert spent <= 0.6 * PARAMETERS
    if cap == 1.0 and svd != "auto":
        assert ranks["a.wide"] == (svd, distill)


def test_auto_spends_what_the_budget_allows_and_not_more():
    found = [
        sum(
            sum(pair)
            for pair in choose_ranks(
                weights(), BranchSpec(budget=budget, cap=1.0), PARAMETERS
            ).values()
        )
        for budget in (0.0, 0.05, 0.1, 0.2, 1.0)
    ]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] == 16 + 8 + 16 or found[-1] == 3 * 16


def test_a_pattern_sets_the_ranks_of_its_layers():
    ranks = choose_ranks(
        weights(), BranchSpec(2, 2, {"a.w*": [5, 6], "a.*": [1, 0]}, budget=1), PARAMETERS
    )
    assert ranks == {"a.wide": (5, 6), "a.narrow": (1, 0), "b.conv": (2, 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"svd": 40, "distill": 40},
            r"found ranks 40 \+ 40, the largest layer has rank 64",
        ),
        ({"ranks": {"a.narrow": [1, 2]}}, "layer a.narrow: found ranks 1 . 2.* at most 2 together"),
        ({"ranks": {"a.wide": [65, 0]}, "cap": 1.0}, r"layer a.wide: .* at most 64"),
        ({"ranks": {"head": [1, 1]}}, "pattern 'head' matches no layer"),
        ({"svd": 16, "budget": 0.1}, "the budget is 10.0%"),
        ({"distill": 8, "budget": 0.01}, "the budget is 1.0%"),
    ],
)
def test_ranks_that_do_not_fit_are_named(options, message):
    with pytest.raises(QuantFaceError, match=message):
        choose_ranks(weights(), BranchSpec(**options), PARAMETERS)


def test_ranks_that_do_not_fit_are_found_before_any_picture_is_seen():
    def untouched():
        raise AssertionError
        yield

    with pytest.raises(QuantFaceError, match="the largest layer has rank 16"):
        prepare(
            TinyNet(),
            {"name": "w4a4", "branch": {"svd": 17}},
            CalibrationData(untouched(), progress=False),
        )


def test_grouped_layers_and_those_at_8_bits_have_no_branch():
    model = TinyNet()
    options = {"name": "w4a4", "eight_bit": ["conv_*"], "branch": {"svd": 2, "budget": 1}}
    recipe = Recipe.from_dict(options)
    convert(model, recipe)
    assert branch_ranks(model, recipe.branch) == {"linear": (2, 0), "line": (2, 0)}
    with pytest.raises(QuantFaceError, match="pattern 'conv_in' matches no layer that may"):
        branch_ranks(model, BranchSpec(ranks={"conv_in": (1, 0)}))
    other = TinyNet()
    prepare(other, options, CalibrationData(pictures(), progress=False))
    assert {layer.name for layer in quant_layers(other) if layer.rank} == {"linear", "line"}
