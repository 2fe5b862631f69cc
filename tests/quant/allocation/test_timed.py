"""Budgets of time: met as the network is measured, however the layers' times predict it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.solve import Limit, allocate, total_cost
from quantface_arch.quant.allocation.timed import TOLERANCE, TimedPlans
from quantface_arch.quant.config.bitmap import LayerChoice

CHOICES = [
    LayerChoice(*bits, rank, kind)
    for *bits, rank, kind in itertools.product((4, 8), (4, 6), (0, 8), ("none", "both"))
]


class Formula:
    """A clock of a network whose time is that of its layers, times a factor, and some more."""

    def __init__(self, count, seed, factor=1.0, rest=0.0):
        generator = np.random.default_rng(seed)
        self.scale = {f"layer{place}": float(generator.uniform(1, 9)) for place in range(count)}
        self.factor, self.rest = factor, rest
        self.asked, self.measured = {}, []

    def work(self, choice):
        return choice.rank, int(choice.balance == "both")

    def layers(self, offered):
        self.asked = self.asked or {name: list(choices) for name, choices in offered.items()}
        return {
            name: {x: self.scale[name] * (1 + x.rank / 8 + (x.balance == "both")) for x in choices}
            for name, choices in offered.items()
        }

    def network(self, plan):
        times = self.layers({name: [choice] for name, choice in plan.items()})
        self.measured.append(dict(plan))
        return self.factor * total_cost(times, plan) + self.rest


def random_costs(count, seed):
    generator = np.random.default_rng(seed)

    def cost(choice):
        quality = sum(choice.bits) + choice.rank / 4 + 2 * (choice.balance == "both")
        return float(2.0**-quality * generator.uniform(0.5, 2))

    return {f"layer{place}": {x: cost(x) for x in CHOICES} for place in range(count)}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    factor=st.floats(0.3, 3),
    rest=st.floats(0, 40),
    share=st.floats(0, 1),
)
def test_the_measured_time_meets_the_budget_whatever_the_rest_of_the_network_takes(
    seed, factor, rest, share
):
    costs, clock = random_costs(6, seed), Formula(6, seed, factor, rest)
    plans = TimedPlans(costs, [], clock)
    fastest = clock.network(plans.fastest)
    slowest = clock.network(allocate(costs))
    budget = fastest + share * (slowest - fastest)
    plan, time = plans.solve(budget)
    assert time == clock.network(plan) <= (1 + TOLERANCE) * budget
    # No plan whose time was predicted as well costs much less.
    exact = Limit("time", clock.layers(costs), budget * (1 - TOLERANCE) ** 2, 1 / factor, rest)
    if exact.ends[0] <= exact.most:
        assert total_cost(costs, plan) <= total_cost(costs, allocate(costs, [exact])) * 1.001


def test_a_larger_budget_never_costs_more_and_a_large_one_gives_every_layer_its_best():
    costs = random_costs(8, 1)
    plans = TimedPlans(costs, [], Formula(8, 1))
    smallest = plans.least
    found = [total_cost(costs, plans.solve(smallest * k)[0]) for k in np.linspace(1, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert plans.solve(1e9)[0] == allocate(costs)


def test_choices_that_are_worse_and_more_work_are_not_measured():
    costs, clock = random_costs(4, 2), Formula(4, 2)
    TimedPlans(costs, [], clock)
    for name, asked in clock.asked.items():
        assert len(asked) < len(CHOICES)
        for left_out in {*CHOICES} - {*asked}:
            assert any(
                costs[name][x] <= costs[name][left_out]
                and all(np.less_equal(clock.work(x), clock.work(left_out)))
                for x in asked
            )


def test_other_limits_hold_too():
    costs = random_costs(6, 3)
    bits = Limit("bits", {n: {x: x.weight_bits for x in CHOICES} for n in costs}, 6 * 5)
    plan, _ = TimedPlans(costs, [bits], Formula(6, 3)).solve(1e9)
    assert bits.value(plan) <= 30 < bits.value(allocate(costs))


def test_a_budget_that_no_plan_meets_names_the_values_that_are_possible():
    plans = TimedPlans(random_costs(5, 4), [], Formula(5, 4, rest=10.0))
    smallest = plans.least
    with pytest.raises(QuantFaceError, match=rf"smallest feasible one is {smallest:.1f}, .* about"):
        plans.solve(smallest / 1.06)
    assert plans.solve(smallest / 1.04)[0] == plans.fastest


def test_times_that_layers_do_not_predict_end_in_a_warning_and_a_plan_that_fits():
    class Noisy(Formula):
        def network(self, plan):
            return super().network(plan) * (1.5 if len(self.measured) % 2 else 0.7)

    plans = TimedPlans(random_costs(40, 5), [], Noisy(40, 5))
    budget = plans.least * 1.1
    with pytest.warns(UserWarning, match="plans were measured, and none took within 5%"):
        plan, time = plans.solve(budget)
    assert plans.measured[tuple(plan.values())] == time <= budget * (1 + TOLERANCE)
