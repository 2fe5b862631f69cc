"""benchmarks/sweep.py: a sweep widens while its best value is at an edge, or says so."""

from __future__ import annotations

import importlib
import json
import math

import pytest


@pytest.fixture
def sweep(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("sweep")


def peak_at(best):
    return lambda rate: -abs(math.log(rate / best))


@pytest.mark.parametrize("best", [0.001, 0.01, 0.3, 3.0])
def test_a_sweep_widens_until_the_best_rate_is_inside(sweep, best):
    found = sweep.sweep((0.01, 0.03), 9, peak_at(best))
    assert max(found, key=found.get) == best and min(found) < best < max(found)
    marks = {row["rate"]: row["best"] for row in sweep.table_of("m", found)}
    assert marks.pop(f"{best:g}") == "best" and set(marks.values()) == {""}


def test_a_sweep_that_may_not_widen_says_that_the_best_is_at_the_edge(sweep):
    found = sweep.sweep((0.01, 0.03, 0.1), 1, peak_at(9.0))
    assert list(found) == [0.01, 0.03, 0.1, 0.3]
    assert [row["best"] for row in sweep.table_of("m", found)] == ["", "", "", "best, at the edge"]


def test_steps_up_and_down_are_inverse(sweep):
    rate = 0.0003
    for wanted in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        assert sweep.beyond(wanted, up=False) == pytest.approx(rate)
        rate = sweep.beyond(rate, up=True)
        assert rate == wanted


@pytest.mark.slow
def test_smoke_run(run_program, tmp_path):
    run_program("benchmarks/sweep.py", "--smoke", "--threads", "1", "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["method"], row["rate"]) for row in rows] == [
        ("passionsr", "0.001"),
        ("passionsr", "0.003"),
    ]
    assert all(15 < row["PSNR"] < 40 for row in rows)
    assert sum(row["best"] == "best, at the edge" for row in rows) == 1
