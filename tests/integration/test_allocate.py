"""Bit allocation by an options file: shared among processes, its settings checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from allocation_files import OPTIONS, changed, enter
from threads import together

from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.allocate import (
    AllocationRun,
    allocate_from_options,
    read_settings,
)
from quantface_arch.quant.allocation import distance
from quantface_arch.quant.allocation.sensitivity_file import Sensitivities
from quantface_arch.runtime import cuda
from quantface_arch.utils.distributed import Shard


@pytest.fixture
def run(tmp_path, monkeypatch):
    folder = enter(tmp_path, monkeypatch)
    (folder / "options.yml").write_text(yaml.safe_dump(OPTIONS))
    return AllocationRun(options=folder / "options.yml", out=folder / "map.yml")


@pytest.mark.slow
def test_layers_are_measured_by_several_processes_as_by_one(run, monkeypatch):
    """Each measures its layers, one writes; a part that a killed process left is used."""
    alone = allocate_from_options(run, Shard())
    path = run.out.with_name("map.sensitivities.json")
    expected = path.read_bytes()
    path.unlink()
    distances = []
    plain = distance.ssim_distance
    monkeypatch.setattr(
        distance, "ssim_distance", lambda *a, **o: distances.append(1) or plain(*a, **o)
    )

    def work_of(shard):
        return allocate_from_options(run, shard)

    first, second = together(2, work_of)
    found = Sensitivities.load(path)
    assert (path.read_bytes(), first, second) == (expected, alone, None)
    assert len(distances) == 2 * len(found.measured)
    assert not list(run.out.parent.glob("*part*"))
    # As if the second process had been killed with its share done, and the first had nothing.
    kept = {probe: found.measured[probe] for probe in list(found.measured)[1::2]}
    replace(found, measured=kept).save(path.with_name("map.sensitivities-part2of2.json"))
    path.unlink()
    distances.clear()
    assert together(2, work_of) == [alone, None]
    assert path.read_bytes() == expected
    assert len(distances) == 2 * (len(found.measured) - len(kept))


def test_the_budget_of_a_run_goes_before_that_of_the_options():
    given = changed(budget={"activation_bits": 4.0})["allocate"]
    settings = read_settings(given, {"activation_bits": 5.0})
    assert settings.budget.activation_bits == 5.0 and settings.ranks is None
    assert settings.widths == {"w": (4,), "a": (3, 4, 8)} and settings.protect == {"conv_first": 8}
    with pytest.raises(QuantFaceError, match="budget activation_bits: found -1"):
        read_settings(given, {"activation_bits": -1})


def test_a_budget_of_size_or_time_offers_ranks_and_balancing():
    for budget in ({"megabytes": 0.009}, {"bytes": 9000}, {"milliseconds": 20}):
        settings = read_settings({"budget": budget, "balances": ["none", "scale"]})
        assert settings.widths == {"w": (4, 6, 8), "a": (4, 6, 8)}
        assert (settings.ranks, settings.balances) == ((0, 8, 16), ("none", "scale"))
        assert budget.keys() == {"milliseconds"} or settings.budget.megabytes == 0.009


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": [0, 8]}, r"option ranks: found \[0, 8\] with a budget of bit widths alone"),
        ({"balances": ["none"]}, "option balances: found .* with a budget of bit widths alone"),
        ({"budget": {"megabytes": 1}, "ranks": [0, -8]}, r"option ranks: found \[0, -8\], allowed"),
        ({"budget": {"megabytes": 1}, "balances": ["auto"]}, "balances: found 'auto', allowed"),
        ({"budget": {"megabytes": 1, "bytes": 9}}, "found megabytes and its old name bytes"),
        ({"budget": {"bytes": "9"}}, "budget megabytes: found '9'"),
        ({"budget": {"runtime": "openvino"}}, "runtime: found 'openvino' without milliseconds"),
        ({"budget": {"device": "cpu", "megabytes": 1}}, "device: found 'cpu' without milliseconds"),
        ({"budget": {"milliseconds": 1, "runtime": "reference"}}, "runtime: found 'reference'"),
    ],
)
def test_budgets_that_contradict_the_choices_are_refused_by_name(given, message):
    with pytest.raises(QuantFaceError, match=message):
        read_settings(given)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"runtime": "cuda"}, "budget milliseconds: runtime cuda: not available here"),
        ({"device": "cuda"}, "budget milliseconds: runtime openvino: found device 'cuda'"),
    ],
)
def test_a_runtime_that_cannot_be_timed_here_is_refused_before_measuring(run, budget, message):
    if budget == {"runtime": "cuda"} and cuda.missing() is None:
        pytest.skip("this machine has a GPU")
    options = changed(budget={"milliseconds": 5.0, **budget})
    run.options.write_text(yaml.safe_dump(options))
    with pytest.raises(QuantFaceError, match=message):
        allocate_from_options(run, Shard())
    assert not list(run.out.parent.glob("*.sensitivities*"))
