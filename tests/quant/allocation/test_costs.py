"""Costs of choices: from measured sensitivities, averaged, relative, kept in files."""

from __future__ import annotations

import json

import pytest

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.costs import layer_costs, probes_of
from quantface_arch.quant.allocation.sensitivity_file import LayerFacts, Sensitivities
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.config.bitmap import LayerChoice


def sensitivities():
    facts = {"in": LayerFacts(10, 30, (8, 8)), "a": LayerFacts(20, 40), "b": LayerFacts(5, 5)}
    measured = {
        (name, "a", bits): [(4.0**-bits, 2.0**-bits), (3 * 4.0**-bits, 3 * 2.0**-bits)]
        for name in "ab"
        for bits in (3, 4, 8)
    }
    return Sensitivities("k", 2, facts, 7, measured=measured)


def settings(**changes):
    options = {"widths": {"w": (4,), "a": (3, 4)}, "budget": Budget(), **changes}
    return AllocationSettings(**options)


def test_costs_are_of_free_layers_and_averaged_over_batches():
    found = layer_costs(
        sensitivities(), settings(error_weight=1.0, protect={"b": 6}, count=["in", "a"])
    )
    assert found["in"].costs == {LayerChoice(8, 8): 0.0}
    assert found["b"].costs == {LayerChoice(6, 6): 0.0} and not found["b"].counted
    expected = {LayerChoice(4, 3): 1.6, LayerChoice(4, 4): 0.4}
    assert found["a"].costs == pytest.approx(expected) and found["a"].counted
    assert (found["a"].parameters, found["a"].macs) == (20, 40)


def test_costs_of_ranks_and_balancing_are_relative_to_those_of_the_bit_widths():
    facts = LayerFacts(90, 30, None, 16, 25, 4, ("none", "scale"))
    measured = {("a", kind, 4): [(1.0, 1.0)] for kind in "wa"}
    plain, better = LayerChoice(4, 4, 0, "none"), LayerChoice(4, 4, 4, "scale")
    wanted = settings(
        widths={"w": (4,), "a": (4,)},
        ranks=(0, 8),
        balances=("none", "both"),
        budget=Budget(megabytes=1.0),
    )
    found = Sensitivities("k", 1, {"a": facts}, 7, measured=measured)
    assert probes_of(found, wanted) == [("a", "w", 4), ("a", "a", 4)]
    offered = wanted.choices(found.layers)["a"]
    # A layer gets the nearest rank and kind that it can have.
    assert {(choice.rank, choice.balance) for choice in offered} == {
        *((rank, kind) for rank in (0, 4) for kind in ("none", "scale"))
    }
    with pytest.raises(QuantFaceError, match="layer a: 4 and 4 bits with rank 0 and balance none"):
        layer_costs(found, wanted)
    found.relative = {"a": {choice: 1.0 for choice in offered} | {better: 0.25}}
    costs = layer_costs(found, wanted)["a"].costs
    assert costs[plain] == 2 and costs[better] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": {"w": (4,), "a": (3, 5)}}, "layer a: activation bit width 5 was not measured"),
        ({"widths": {"w": (3, 4), "a": (3,)}}, "layer a: weight bit width 3 was not measured"),
        ({"protect": {"c*": 8}}, r"protect: pattern 'c\*' matches no layer"),
        ({"count": ["c*"]}, r"count: pattern 'c\*' matches no layer"),
    ],
)
def test_costs_that_cannot_be_had_are_named(options, message):
    with pytest.raises(QuantFaceError, match=message):
        layer_costs(sensitivities(), settings(**options))


def test_files_keep_everything_and_those_of_earlier_releases_load(tmp_path):
    facts = LayerFacts(90, 30, None, 16, 25, 4, ("none", "scale"))
    relative = {"a": {LayerChoice(4, 8, 0, "scale"): 0.5, LayerChoice(4, 4, None, "none"): 1.0}}
    found = Sensitivities("k", 1, {"a": facts}, 7, 5, 3, {("a", "w", 4): [(1.0, 2.0)]}, relative)
    found.save(tmp_path / "s.json")
    assert Sensitivities.load(tmp_path / "s.json") == found
    document = json.loads((tmp_path / "s.json").read_text()) | {"format_version": 1}
    for key in ("recipe_bytes", "branch_parameters", "relative"):
        del document[key]
    document["layers"]["a"] = {"parameters": 90, "macs": 30, "fixed": [8, 8]}
    (tmp_path / "s.json").write_text(json.dumps(document))
    earlier = Sensitivities.load(tmp_path / "s.json")
    assert earlier.layers == {"a": LayerFacts(90, 30, (8, 8))} and not earlier.relative


def test_more_bits_never_cost_more_and_are_taken_where_they_cost_the_same():
    measured = {
        ("a", "a", bits): [(error, error)] for bits, error in ((3, 4.0), (4, 1.0), (8, 1.1))
    }
    found = Sensitivities("k", 1, {"a": LayerFacts(1, 1)}, 7, measured=measured)
    costs = layer_costs(found, settings(widths={"w": (4,), "a": (3, 4, 8)}))["a"].costs
    assert costs[LayerChoice(4, 8)] == costs[LayerChoice(4, 4)] < costs[LayerChoice(4, 3)]
    assert next(iter(costs)) == LayerChoice(4, 8)
