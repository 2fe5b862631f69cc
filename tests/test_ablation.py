"""benchmarks/ablation.py: cells differ by what they say, run once, and end in a table."""

from __future__ import annotations

import importlib
import json

import programs
import pytest


@pytest.fixture
def ablation(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("ablation")


@pytest.fixture
def bench(ablation, tmp_path, bench_env, monkeypatch):
    monkeypatch.setenv("QUANTFACE_DATA", bench_env["QUANTFACE_DATA"])

    def build(*words):
        args = ablation.make_parser().parse_args(["--cache", str(tmp_path), *words])
        return ablation.bench_of(args), ablation.cells_of(args)

    return build


def test_the_whole_table_has_every_pair_once_and_mixed_widths_where_a_map_is_given(bench):
    _, cells = bench()
    assert len(cells) == len(set(cells)) == 20
    _, more = bench("--bit-map", "map.yml")
    assert {cell.bits for cell in set(more) - set(cells)} == {"MP"}
    assert [cell.trains for cell in cells] == sorted(cell.trains for cell in cells)


def test_options_of_a_cell_are_those_of_its_name(ablation, bench):
    made, cells = bench("--ranks", "3", "5", "--bit-map", "map.yml")
    ranks = {"none": (0, 0), "svd": (8, 0), "distill": (0, 8), "both": (3, 5)}
    names = set()
    for cell in cells:
        opt = made.derive(cell, 40 if cell.trains else 0)
        branch = opt["quant"]["branch"]
        assert (branch["svd"], branch["distill"]) == ranks[cell.branch]
        assert opt["quant"]["balance"]["kind"] == cell.balance
        assert opt["quant"]["bit_map"] == ("map.yml" if cell.bits == "MP" else None)
        assert opt["train"]["total_iter"] == (40 if cell.trains else 0)
        assert sum(opt["train"]["scheduler"]["periods"]) >= opt["train"]["total_iter"]
        names.add(opt["name"])
    assert len(names) == len(cells)


def test_whatever_the_figures_depend_on_changes_the_name(ablation, bench):
    cell = ablation.Cell("auto", "both")
    words = ((), ("--limit", "3"), ("--ranks", "1", "2"), ("--calibration", "3"))
    words += (("--train-faces", "elsewhere"),)
    names = [bench(*more)[0].derive(cell, 4)["name"] for more in words]
    names.append(bench()[0].derive(cell, 5)["name"])
    assert len(set(names)) == len(names)
    assert bench()[0].derive(cell, 4)["name"] == names[0]


def test_a_finished_cell_is_not_repeated(ablation, bench, monkeypatch):
    made, [cell] = bench("--balance", "scale", "--branch", "svd")
    names = (*ablation.NAMES, "psnr_vs_fp")
    faces = {"a": dict.fromkeys(names, 1.0), "b": dict.fromkeys(names, 2.0)}
    name = made.derive(cell, 0)["name"]
    ablation.save(made.cells.cache / f"{name}.json", {"faces": faces, "bytes": 2_000_000})
    monkeypatch.setattr(made.cells, "train", None)
    assert made.row(cell, 7) == {
        **{"bits": "W4A4", "balance": "scale", "branch": "svd", "steps": 0, "MB": 2.0},
        **dict.fromkeys(names, 1.5),
    }


@pytest.mark.slow
def test_a_failed_training_says_why(ablation, bench):
    made, _ = bench("--smoke")
    opt = made.derive(ablation.Cell("none", "none"), 0)
    opt["network_g"]["weights"] = "no-model"
    with pytest.raises(SystemExit, match="no-model"):
        made.cells.train(opt)


@pytest.mark.slow
def test_minutes_are_limited(repo):
    result = programs.run_program(repo / "benchmarks/ablation.py", "--minutes", "11")
    assert result.returncode == 2 and "allowed is up to 10" in result.stderr


@pytest.mark.slow
def test_smoke_run(run_program, tmp_path):
    words = ("--smoke", "--threads", "1", "--json", tmp_path / "out.json")
    stdout = run_program("benchmarks/ablation.py", *words)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["balance"], row["branch"], row["steps"]) for row in rows] == [
        ("", "", 0),
        ("none", "none", 0),
        ("scale", "both", 2),
    ]
    assert all(15 < row["psnr_vs_fp"] < 60 for row in rows[1:])
    assert rows[1]["MB"] < rows[2]["MB"] < rows[0]["MB"]
    assert stdout.count("|") > 2 * len(rows)
