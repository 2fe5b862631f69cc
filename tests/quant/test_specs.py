"""Recipes: checked on making, equal after a round trip through plain data."""

from __future__ import annotations

import json

import pytest

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.recipe import Recipe
from quantface_arch.quant.specs import QuantSpec


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
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


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
        ({"name": "w4a8", "weights": {"range": "max"}}, "allowed are minmax, percentile, mse"),
        ({"name": "w4a8", "weights": {"granularity": "row"}}, "allowed are channel, tensor"),
        ({"name": "w4a8", "weights": {"percentile": 30}}, "percentile: found 30"),
        ({"name": "w4a8", "weights": {"symmetric": 1}}, "symmetric: found 1"),
        ({"name": "w4a8", "activations": {"granularity": "channel"}}, "tensor only"),
        ({"name": "w4a8", "include": "unet.*"}, "a list of name patterns"),
        ({"name": "w4a8", "exclude": [3]}, "patterns are strings"),
        ({"name": "mine", "weights": {"bits": 4}}, "recipe activations: no bits"),
        ({}, "recipe weights: no bits"),
        (["w4a8"], "a mapping"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(QuantFaceError, match=message.replace("[", r"\[")):
        Recipe.from_dict(options)


@pytest.mark.parametrize("name", ["w4", "w1a8", "w4a9", "int8", "", None])
def test_wrong_names_are_refused(name):
    with pytest.raises(QuantFaceError, match="w8a8, w4a8"):
        Recipe.from_name(name)
