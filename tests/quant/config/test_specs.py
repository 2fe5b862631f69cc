"""Recipes: checked on making, equal after a round trip through plain data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.branch_spec import BranchSpec
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import BalanceSpec, QuantSpec


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w6a6", "w4a6", "w4a4"])
def test_names_set_the_widths(name):
    recipe = Recipe.from_name(name.upper())
    assert recipe.name == name
    assert f"w{recipe.weights.bits}a{recipe.activations.bits}" == name
    assert recipe.weights.granularity == "channel"


def test_round_trip_through_json():
    recipe = Recipe(
        QuantSpec(3, symmetric=True, granularity="channel", range="percentile", percentile=99),
        QuantSpec(5, range="minmax"),
        include=("a.*",),
        exclude=("a.b",),
        eight_bit=("a.c",),
        balance=BalanceSpec("both", 0.4, 0.7, 64, "split", 3, {"a.d": "rotate"}),
        branch=BranchSpec(4, 8, {"a.*": (2, 3)}, 0.5, 0.2),
    )
    newer = replace(
        recipe,
        balance=replace(recipe.balance, hadamard="regular"),
        branch=replace(recipe.branch, bits=8),
    )
    for one in (recipe, newer):
        assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_balance_and_branch_are_read_beside_a_name():
    balance = {"kind": "scale", "block": 32}
    branch = {"svd": 8, "distill": 8, "ranks": {"mid.*": [4, 2]}}
    recipe = Recipe.from_dict({"name": "w4a4", "balance": balance, "branch": branch})
    assert recipe.balance == BalanceSpec("scale", block=32)
    assert recipe.branch == BranchSpec(8, 8, {"mid.*": (4, 2)})
    assert recipe.branch.ranks["mid.*"] == (4, 2)
    assert recipe.weights == Recipe.from_name("w4a4").weights


def test_a_named_recipe_takes_changes():
    recipe = Recipe.from_dict({"name": "w4a8", "exclude": ["x"], "weights": {"range": "minmax"}})
    assert recipe.weights == QuantSpec(4, True, "channel", "minmax")
    assert recipe.exclude == ("x",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "w4a8", "wieghts": {}}, "unknown key wieghts; allowed are activations"),
        ({"name": "w4a8", "weights": {"bit": 4}}, "unknown key bit; allowed are bits"),
        ({"name": "w4a8", "weights": {"bits": 9}}, "bits: found 9"),
        ({"name": "w4a8", "weights": {"bits": True}}, "bits: found True"),
        ({"name": "w4a8", "weights": {"bits": "4"}}, "bits: found '4'"),
        ({"name": "w4a8", "weights": 4}, "a mapping"),
        ({"name": "w4a8", "weights": {"range": "max"}}, "allowed are minmax, ema, percentile, mse"),
        ({"name": "w4a8", "weights": {"granularity": "row"}}, "allowed are channel, tensor"),
        ({"name": "w4a8", "weights": {"percentile": 30}}, "percentile: found 30"),
        ({"name": "w4a8", "weights": {"symmetric": 1}}, "symmetric: found 1"),
        ({"name": "w4a8", "activations": {"granularity": "channel"}}, "allowed are tensor"),
        ({"name": "w4a8", "include": "unet.*"}, "a list of name patterns"),
        ({"name": "w4a8", "exclude": [3]}, "patterns are strings"),
        ({"name": "mine", "weights": {"bits": 4}}, "recipe activations: no bits"),
        ({}, "recipe weights: no bits"),
        (["w4a8"], "a mapping"),
        ({"name": "w4a8", "balance": "auto"}, "recipe balance: found 'auto', a mapping"),
        ({"name": "w4a8", "balance": {"knd": "auto"}}, "recipe balance: unknown key knd"),
        ({"name": "w4a8", "balance": {"kind": "all"}}, "allowed are none, scale, rotate, both, au"),
        ({"name": "w4a8", "balance": {"alpha": 1.1}}, "balance alpha: found 1.1"),
        ({"name": "w4a8", "balance": {"alpha": "find"}}, "balance alpha: found 'find'"),
        ({"name": "w4a8", "balance": {"alpha": True}}, "balance alpha: found True"),
        ({"name": "w4a8", "balance": {"beta": -0.1}}, "balance beta: found -0.1"),
        ({"name": "w4a8", "balance": {"block": 48}}, "balance block: found 48"),
        (
            {"name": "w4a8", "balance": {"hadamard": "sylvester"}},
            "balance hadamard: found 'sylvester', allowed are random, regular",
        ),
        (
            {"name": "w4a8", "branch": {"bits": 9}},
            "branch bits: found 9, allowed are 2 to 8 and 16",
        ),
        ({"name": "w4a8", "branch": {"bits": True}}, "branch bits: found True"),
        ({"name": "w4a8", "balance": {"sources": "both"}}, "allowed are whole, split"),
        ({"name": "w4a8", "balance": {"seed": -1}}, "balance seed: found -1"),
        ({"name": "w4a8", "balance": {"layers": ["a"]}}, "balance layers: found"),
        ({"name": "w4a8", "balance": {"layers": {"a": "x"}}}, "balance layers 'a': found 'x'"),
        ({"name": "w4a8", "branch": 8}, "recipe branch: found 8, a mapping"),
        ({"name": "w4a8", "branch": {"rank": 8}}, "recipe branch: unknown key rank"),
        ({"name": "w4a8", "branch": {"svd": -1}}, "branch svd: found -1"),
        ({"name": "w4a8", "branch": {"svd": "max"}}, "branch svd: found 'max'"),
        ({"name": "w4a8", "branch": {"distill": 1.5}}, "branch distill: found 1.5"),
        ({"name": "w4a8", "branch": {"distill": True}}, "branch distill: found True"),
        ({"name": "w4a8", "branch": {"cap": 2}}, "branch cap: found 2"),
        ({"name": "w4a8", "branch": {"budget": "10%"}}, "branch budget: found '10%'"),
        ({"name": "w4a8", "branch": {"ranks": [1, 2]}}, "branch ranks: found"),
        ({"name": "w4a8", "branch": {"ranks": {"a": 3}}}, "branch ranks 'a': found 3"),
        ({"name": "w4a8", "branch": {"ranks": {"a": [1]}}}, "branch ranks 'a': found [1]"),
        ({"name": "w4a8", "branch": {"ranks": {"a": [1, -1]}}}, "branch ranks 'a' distill: fou"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(QuantFaceError, match=message.replace("[", r"\[")):
        Recipe.from_dict(options)


@pytest.mark.parametrize("name", ["w4", "w1a8", "w4a9", "int8", "", None])
def test_wrong_names_are_refused(name):
    with pytest.raises(QuantFaceError, match="w8a8, w4a8"):
        Recipe.from_name(name)
