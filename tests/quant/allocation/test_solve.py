"""The integer program: against brute force, budgets kept, speed, what it says when it cannot."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.solve import (
    Budget,
    LayerCosts,
    allocate,
    average_bits,
    combine_costs,
)

WIDTHS = (3, 4, 5, 6, 7, 8)


def random_layers(count, seed, widths=WIDTHS):
    """Layers whose cost falls with the width, mostly, over several orders of magnitude."""
    generator = np.random.default_rng(seed)

    def costs():
        height = np.exp(generator.normal(0, 2))
        return {b: float(height * 4.0**-b * generator.uniform(0.7, 1.4)) for b in widths}

    def size(middle):
        return int(np.exp(generator.normal(middle, 2))) + 1

    return {
        f"layer{place}": LayerCosts(
            costs(), costs(), size(12), size(18), counted=bool(generator.random() < 0.9)
        )
        for place in range(count)
    }


def total_cost(layers, bits):
    return sum(
        layers[name].weights[weight] + layers[name].activations[activation]
        for name, (weight, activation) in bits.items()
    )


def fits(layers, bits, budget, fixed_bytes):
    size = fixed_bytes + sum(layers[name].parameters * w for name, (w, _) in bits.items()) / 8
    return (
        average_bits(layers, bits, "w") <= budget.weight_bits
        and average_bits(layers, bits, "a") <= budget.activation_bits
        and size <= budget.bytes
    )


def brute_force(layers, budget, fixed_bytes):
    """Least cost of each kind over every plan that fits; weights and inputs share no budget."""
    least = 0.0
    for kind in ("w", "a"):
        best = np.inf
        for plan in itertools.product(*(layer.candidates(kind) for layer in layers.values())):
            smallest = {n: (min(x.weights), min(x.activations)) for n, x in layers.items()}
            for (name, (w, a)), width in zip(smallest.items(), plan, strict=True):
                smallest[name] = (width, a) if kind == "w" else (w, width)
            if fits(layers, smallest, budget, fixed_bytes):
                costs = zip(layers.values(), plan, strict=True)
                best = min(best, sum(layer.candidates(kind)[b] for layer, b in costs))
        least += best
    return least


@settings(max_examples=40)
@given(
    count=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    weight_bits=st.floats(3.0, 6.5),
    activation_bits=st.floats(3.0, 6.5),
    size=st.floats(3.0, 6.5),
)
def test_equals_brute_force(count, seed, weight_bits, activation_bits, size):
    layers = random_layers(count, seed, widths=(3, 4, 6, 8) if count > 4 else WIDTHS)
    fixed = 1000
    parameters = sum(layer.parameters for layer in layers.values())
    budget = Budget(activation_bits, weight_bits, fixed + size * parameters / 8)
    bits = allocate(layers, budget, fixed)
    assert fits(layers, bits, budget, fixed)
    assert total_cost(layers, bits) == pytest.approx(brute_force(layers, budget, fixed), rel=1e-9)


def test_without_budgets_every_layer_takes_its_cheapest_width():
    layers = random_layers(20, 1)
    for name, (weight, activation) in allocate(layers, Budget()).items():
        assert layers[name].weights[weight] == min(layers[name].weights.values())
        assert layers[name].activations[activation] == min(layers[name].activations.values())


def test_fixed_layers_keep_their_width_and_count():
    layers = random_layers(5, 2)
    layers["first"] = LayerCosts({8: 0.0}, {8: 0.0}, 10**6, 10**9)
    sizes = [layer.macs for layer in layers.values() if layer.counted]
    smallest = 3 + 5 * 10**9 / sum(sizes)
    bits = allocate(layers, Budget(activation_bits=smallest + 0.5))
    assert bits["first"] == (8, 8)
    assert 0 < average_bits(layers, bits, "a") <= smallest + 0.5
    with pytest.raises(QuantFaceError, match="smallest feasible"):
        allocate(layers, Budget(activation_bits=smallest - 0.01))


def test_a_layer_that_does_not_count_is_free_in_averages_but_not_in_the_file():
    costs = {3: 1.0, 8: 0.0}
    layers = {
        "inside": LayerCosts(costs, costs, 1000, 1000),
        "outside": LayerCosts(costs, costs, 1000, 1000, counted=False),
    }
    assert allocate(layers, Budget(3.0, 3.0)) == {"inside": (3, 3), "outside": (8, 8)}
    assert allocate(layers, Budget(weight_bits=3.0, bytes=800))["outside"][0] == 3


@pytest.mark.slow
def test_solves_354_layers_of_6_widths_in_less_than_a_second():
    allocate(random_layers(2, 0), Budget(4.0))  # imports the solver
    spent = []
    for seed in range(3):
        layers = random_layers(354, seed)
        start = time.process_time()
        bits = allocate(layers, Budget(activation_bits=4.0, weight_bits=4.5))
        spent.append(time.process_time() - start)
        assert average_bits(layers, bits, "a") <= 4.0
        assert average_bits(layers, bits, "w") <= 4.5
    assert min(spent) < 1.0


@pytest.mark.parametrize(
    ("budget", "unit"),
    [
        (Budget(activation_bits=2.5), "activation_bits"),
        (Budget(weight_bits=2.9), "weight_bits"),
        (Budget(bytes=10), "bytes"),
    ],
)
def test_an_infeasible_budget_names_the_smallest_feasible_one_which_is_feasible(budget, unit):
    layers = random_layers(6, 3)
    with pytest.raises(QuantFaceError, match=f"budget {unit}: found .* smallest feasible") as error:
        allocate(layers, budget, fixed_bytes=77)
    smallest = float(str(error.value).split()[-1])
    allocate(layers, Budget(**{unit: smallest}), fixed_bytes=77)
    with pytest.raises(QuantFaceError):
        allocate(layers, Budget(**{unit: smallest * 0.999}), fixed_bytes=77)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "no layer"),
        ({"a.b": LayerCosts({}, {8: 0.0}, 1, 1)}, "layer a.b: weight widths: found none"),
        ({"a.b": LayerCosts({8: 0.0}, {9: 0.0}, 1, 1)}, "layer a.b: activation widths: found 9"),
        ({"a.b": LayerCosts({1: 0.0}, {8: 0.0}, 1, 1)}, "layer a.b: weight widths: found 1"),
        ({"a.b": LayerCosts({4: np.nan}, {8: 0.0}, 1, 1)}, "layer a.b: .* 4 bits is nan"),
    ],
)
def test_wrong_layers_are_named(layers, message):
    with pytest.raises(QuantFaceError, match=message):
        allocate(layers, Budget())


@pytest.mark.parametrize("options", [{"bits": 4}, {"bytes": -1}, {"weight_bits": "4"}])
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
