"""The pipeline of bit allocation on a small network, without options files."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, Recipe, convert, quant_layers
from quantface_arch.quant.allocation.allocation import solve_allocation
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.distance import ssim_distance
from quantface_arch.quant.allocation.pipeline import (
    Measurement,
    measure_network,
    prepare_sensitivities,
)
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.config.bitmap import bits_of
from quantface_arch.quant.cost.stand_in import StandIn


def settings(**changes):
    return AllocationSettings(
        **{
            "widths": {"w": (4,), "a": (3, 8)},
            "budget": Budget(activation_bits=6.0),
            "protect": {"conv_in": 8},
            "image_size": 16,
            **changes,
        }
    )


def measured(path, distance=ssim_distance, branch=None, **changes):
    torch.manual_seed(0)
    net = TinyNet().eval()
    job = Measurement(
        recipe=Recipe.from_dict({"name": "w4a4", "branch": {"budget": 1, **(branch or {})}}),
        plan=None,
        distance=distance,
        path=path,
        described_by="ssim",
    )
    data = CalibrationData(pictures(2), batch_size=2, progress=False)
    return measure_network(net, data, job, settings(**changes))


def test_the_allocation_meets_the_budget_and_leaves_protected_layers_alone(tmp_path):
    found = measured(tmp_path / "s.json")
    allocation = solve_allocation(found, settings())
    assert allocation.choices["conv_in"].bits == (8, 8)
    assert {choice.activation_bits for choice in allocation.choices.values()} == {3, 8}
    assert 3 < allocation.averages["activation_bits"] <= 6
    text = allocation.summary(tmp_path / "map.yml")
    assert f"map.yml: {len(allocation.choices)} layers" in text
    assert f"inputs: {allocation.averages['activation_bits']:.4f} bits on average" in text


def test_layers_are_measured_with_the_branches_of_the_recipe(tmp_path):
    plain, helped = (
        measured(tmp_path / f"{rank}.json", branch={"svd": rank}, ranks=(0, rank or 1))
        for rank in (0, 2)
    )
    probe = ("linear", "a", 3)
    assert helped.measured[probe][0][0] < 0.9 * plain.measured[probe][0][0]
    for found, rank in ((plain, 0), (helped, 2)):
        # The balancing that costs were measured with has the relative error 1.
        errors = [x for choice, x in found.relative["linear"].items() if choice.rank == rank]
        assert min(abs(error - 1) for error in errors) < 0.01


def test_curves_keep_the_averages_of_the_budget(tmp_path):
    budget = Budget(activation_bits=6.0, megabytes=1.0)
    found = measured(tmp_path / "s.json", budget=budget, ranks=(0, 2))
    (curve,) = solve_allocation(found, settings(budget=budget, ranks=(0, 2)), curves=True).curves
    # A megabyte is more than any plan of this network takes, so the average alone limits the cost.
    assert curve.costs[-1] == pytest.approx(curve.chosen[1], rel=1e-3)
    free = Budget(megabytes=1.0)
    (other,) = solve_allocation(found, settings(budget=free, ranks=(0, 2)), curves=True).curves
    assert other.costs[-1] < 0.9 * curve.costs[-1]


def test_complete_results_are_read_and_not_measured_again(tmp_path):
    found = measured(tmp_path / "s.json")

    def unused(*_):
        raise AssertionError("measured again")

    again = measured(tmp_path / "s.json", unused, budget=Budget(activation_bits=4.0))
    assert again == found


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(QuantFaceError, match="activation_bits: found 2, the smallest"):
        measured(tmp_path / "s.json", budget=Budget(activation_bits=2.0))
    assert not list(tmp_path.iterdir())


def test_layers_are_described_with_their_fixed_widths_and_idle_ones_named():
    net = TinyNet()
    net.idle = torch.nn.Linear(4, 4)
    recipe = Recipe.from_dict({"name": "w4a4", "eight_bit": ["conv_out"], "exclude": ["idle"]})
    found = prepare_sensitivities(net, recipe, "key", 2, 16)
    assert found.layers["conv_out"].fixed == (8, 8) and found.layers["conv_in"].fixed is None
    assert set(found.layers) == {layer.name for layer in quant_layers(net)}
    net = TinyNet()
    net.idle = torch.nn.Linear(4, 4)
    with pytest.raises(QuantFaceError, match="layer idle: the network does not use it"):
        prepare_sensitivities(net, Recipe.from_name("w4a4"), "key", 2, 16)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("hadamard", ["random", "regular"])
def test_the_size_of_a_plan_is_that_of_its_file(bits, hadamard):
    recipe = Recipe.from_dict(
        {
            "name": "w4a4",
            "branch": {"bits": bits, "budget": 1},
            "balance": {"hadamard": hadamard, "block": 64},
        }
    )
    found = prepare_sensitivities(TinyNet(64), recipe, "key", 1, 16)
    assert "both" in found.layers["body"].kinds
    plan = {name: facts.choice((4, 4), 4, "both") for name, facts in found.layers.items()}
    sizes = [facts.bytes(name, plan[name]) for name, facts in found.layers.items()]
    with torch.device("meta"):
        net = TinyNet(64)
    planned = recipe.with_choices(plan)
    convert(net, planned, bits_of(plan))
    wanted = StandIn.of(net, planned, {}).bytes
    assert found.fixed_bytes + sum(sizes) == pytest.approx(wanted, rel=0.01)
