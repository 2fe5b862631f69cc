"""The integer program: against brute force, budgets kept, speed, what it says when it cannot."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.curves import curve_of
from quantface_arch.quant.allocation.solve import (
    Limit,
    allocate,
    combine_costs,
    contenders,
    total_cost,
)
from quantface_arch.quant.config.bitmap import LayerChoice

WIDTHS = (3, 4, 5, 6, 7, 8)


def random_problem(count, seed, widths=WIDTHS):
    """Costs that mostly fall with the widths over orders of magnitude, and sizes of the layers."""
    generator = np.random.default_rng(seed)

    def costs():
        height = np.exp(generator.normal(0, 2))
        return {b: float(height * 4.0**-b * generator.uniform(0.7, 1.4)) for b in widths}

    found, sizes = {}, {}
    for name in (f"layer{place}" for place in range(count)):
        weights, inputs = costs(), costs()
        found[name] = {LayerChoice(w, a): weights[w] + inputs[a] for w in widths for a in widths}
        sizes[name] = [int(np.exp(generator.normal(middle, 2))) + 1 for middle in (12, 18)]
    return found, sizes


def average(name, costs, sizes, place, most):
    """The limit of the average bit width of weights (place 0) or of inputs (place 1)."""
    amounts = {n: {x: sizes[n][place] * x.bits[place] for x in costs[n]} for n in costs}
    return Limit(name, amounts, most, sum(size[place] for size in sizes.values()))


def brute_force(costs, limits):
    best = np.inf
    for plan in itertools.product(*costs.values()):
        choices = dict(zip(costs, plan, strict=True))
        if all(limit.value(choices) <= limit.most for limit in limits):
            best = min(best, total_cost(costs, choices))
    return best


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    weight_bits=st.floats(3.0, 6.5),
    activation_bits=st.floats(3.0, 6.5),
)
def test_equals_brute_force(count, seed, weight_bits, activation_bits):
    costs, sizes = random_problem(count, seed, widths=(3, 4, 8) if count > 2 else WIDTHS)
    limits = [
        average("w", costs, sizes, 0, weight_bits),
        average("a", costs, sizes, 1, activation_bits),
        Limit("sum", {n: {x: sum(x.bits) for x in costs[n]} for n in costs}, 12 * count, 1, 0.5),
    ]
    choices = allocate(costs, limits)
    assert all(limit.value(choices) <= limit.most for limit in limits)
    assert total_cost(costs, choices) == pytest.approx(brute_force(costs, limits), rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_larger_budget_never_costs_more_and_the_largest_gives_every_layer_its_best(seed):
    costs, sizes = random_problem(6, seed)
    limit = average("w", costs, sizes, 0, 0.0)
    curve = curve_of("bits", costs, [], limit, allocate(costs))
    assert list(curve.values) == sorted(curve.values)
    assert list(curve.costs) == sorted(curve.costs, reverse=True)
    best = {name: min(row, key=row.__getitem__) for name, row in costs.items()}
    assert curve.costs[-1] == total_cost(costs, best)
    assert curve.values[0] == limit.ends[0]
    spent, smaller = np.inf, None
    for most in np.linspace(*limit.ends, 6):
        smaller, spent = spent, total_cost(costs, allocate(costs, [replace(limit, most=most)]))
        assert spent <= smaller + 1e-12
    assert allocate(costs, [replace(limit, most=limit.ends[1])]) == best


def test_choices_that_another_one_beats_are_left_out():
    a, b, c, d = (LayerChoice(width, 4) for width in (3, 4, 5, 6))
    costs = {"layer": {a: 3.0, b: 2.0, c: 2.0, d: 1.0}}
    limit = Limit("size", {"layer": {a: 1, b: 1, c: 1, d: 2}}, 9)
    assert contenders(costs, [limit]) == {"layer": [b, d]}
    assert contenders(costs, []) == {"layer": [d]}


def test_a_layer_with_one_choice_keeps_it_and_counts():
    costs, sizes = random_problem(5, 2)
    costs["first"], sizes["first"] = {LayerChoice(8, 8): 0.0}, [10**6, 10**9]
    smallest = average("a", costs, sizes, 1, 0.0).ends[0]
    limit = average("a", costs, sizes, 1, smallest + 0.5)
    choices = allocate(costs, [limit])
    assert choices["first"] == LayerChoice(8, 8)
    assert 0 < limit.value(choices) <= smallest + 0.5
    with pytest.raises(QuantFaceError, match="smallest feasible"):
        allocate(costs, [replace(limit, most=smallest - 0.01)])


@pytest.mark.slow
def test_solves_354_layers_of_36_choices_in_seconds():
    costs, sizes = random_problem(2, 0)
    allocate(costs, [average("a", costs, sizes, 1, 4.0)])  # imports the solver
    spent = []
    for seed in range(3):
        costs, sizes = random_problem(354, seed)
        limits = [average("a", costs, sizes, 1, 4.0), average("w", costs, sizes, 0, 4.5)]
        start = time.process_time()
        choices = allocate(costs, limits)
        spent.append(time.process_time() - start)
        assert all(limit.value(choices) <= limit.most for limit in limits)
    assert min(spent) < 5.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), offset=st.floats(0, 100))
def test_an_infeasible_limit_names_the_values_that_are_feasible(seed, offset):
    costs, sizes = random_problem(6, seed)
    limit = replace(average("budget size", costs, sizes, 0, offset), offset=offset)
    message = "budget size: found .* smallest feasible one is ([0-9.]+), .* effect is ([0-9.]+)"
    with pytest.raises(QuantFaceError, match=message) as error:
        allocate(costs, [limit])
    smallest, largest = map(float, re.search(message, str(error.value)).groups())
    allocate(costs, [replace(limit, most=smallest)])
    assert total_cost(costs, allocate(costs, [replace(limit, most=largest)])) == total_cost(
        costs, allocate(costs)
    )
    with pytest.raises(QuantFaceError):
        allocate(costs, [replace(limit, most=smallest - 0.001)])


def test_limits_that_no_plan_meets_together_are_named():
    small, large = LayerChoice(4, 4), LayerChoice(8, 8)
    costs = {"layer": {small: 1.0, large: 1.0}}
    limits = [
        Limit("budget megabytes", {"layer": {small: 1, large: 2}}, 1),
        Limit("budget milliseconds", {"layer": {small: 2, large: 1}}, 1),
    ]
    with pytest.raises(QuantFaceError, match="budget megabytes and budget milliseconds together"):
        allocate(costs, limits)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({}, "no layer"),
        ({"a.b": {}}, "layer a.b: found no choice"),
        ({"a.b": {LayerChoice(4, 4): np.nan}}, "layer a.b: the cost of .* is nan"),
    ],
)
def test_wrong_layers_are_named(costs, message):
    with pytest.raises(QuantFaceError, match=message):
        allocate(costs)


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"megabytes": -1}, {"weight_bits": "4"}, {"milliseconds": True}]
)
def test_wrong_budgets_are_named(options):
    with pytest.raises(QuantFaceError, match=f"budget.*{next(iter(options))}"):
        Budget.from_dict(options)


def test_costs_mix_the_two_measures_whatever_their_units():
    errors = {"a": 1.0, "b": 3.0}
    distances = {"a": 0.6, "b": 0.2}
    assert combine_costs(errors, distances, 1) == {"a": 0.5, "b": 1.5}
    assert combine_costs(errors, distances, 0) == pytest.approx({"a": 1.5, "b": 0.5})
    scaled = combine_costs({k: 100 * v for k, v in errors.items()}, distances, 0.5)
    assert scaled == pytest.approx(combine_costs(errors, distances, 0.5))
    with pytest.raises(QuantFaceError, match=r"lambda: found 1\.5"):
        combine_costs(errors, distances, 1.5)
