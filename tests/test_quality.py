"""benchmarks/quality.py: equal terms for all methods, paired figures, tables and a sheet."""

from __future__ import annotations

import csv
import importlib
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from quantface_arch.quant import Recipe


@pytest.fixture
def modules(repo, monkeypatch):
    """The benchmark, its rows and its tables."""
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    names = ("quality", "quality_rows", "quality_tables")
    return tuple(importlib.import_module(name) for name in names)


@pytest.fixture
def quality(modules):
    return modules[0]


@pytest.fixture
def rows(modules):
    return modules[1]


@pytest.fixture
def tables(modules):
    return modules[2]


@pytest.fixture
def options(quality, rows):
    def read(setting, method, *words, ranges="own"):
        args = quality.make_parser().parse_args(list(words))
        return rows.options_of(rows.Row(setting, method, ranges), args)

    return read


@pytest.mark.slow
def test_every_method_gets_the_same_calibration_and_training(rows, options):
    for setting in rows.SETTINGS:
        ours = options(setting, rows.OURS, "--steps", "70")
        for method in rows.PEERS:
            for ranges in rows.RANGES:
                opt = options(setting, method, "--steps", "70", ranges=ranges)
                assert opt["quant"]["name"] == ours["quant"]["name"] == rows.SETTINGS[setting][0]
                assert opt["quant"]["calibration"].items() <= ours["quant"]["calibration"].items()
                assert opt["train"]["total_iter"] in (0, 70)
                # QuantFace's W4A8 takes no training step, so no peer gets fewer.
                assert ours["train"]["total_iter"] == (0 if setting == "W4A8" else 70)
                assert opt["datasets"] == ours["datasets"]


def test_methods_that_do_not_learn_all_ranges_get_a_row_with_ours(quality, rows, options):
    ours = Recipe.from_dict(recipe_part(options("W4A4", rows.OURS)))
    for method in rows.PEERS:
        opt = options("W4A4", method)
        own = Recipe.from_dict(recipe_part(opt))
        learns_all = opt["train"]["total_iter"] and opt["train"]["train_weights"] == "scale"
        assert (method in rows.SEARCHED) == (not learns_all)
        if method not in rows.SEARCHED:
            continue
        found = Recipe.from_dict(recipe_part(options("W4A4", method, ranges="searched")))
        for part in ("weights", "activations"):
            spec, wanted = getattr(found, part), getattr(ours, part)
            names = ("range", "power", "weighted", "zero_points")
            assert [getattr(spec, x) for x in names] == [getattr(wanted, x) for x in names]
            # All but the search is the method's own.
            same = dict(zip(names, ("minmax", 2.0, True, "tensor"), strict=True))
            assert replace(spec, **same) == replace(getattr(own, part), **same)
        assert (found.balance, found.branch) == (own.balance, own.branch)
    args = quality.make_parser().parse_args(["--settings", "W4A4"])
    labels = [row.label for row in rows.rows_of(args)]
    assert len(set(labels)) == len(labels) == len(rows.PEERS) + len(rows.SEARCHED) + 1
    assert {"maxmin, own ranges", "maxmin, searched ranges", "passionsr"} <= set(labels)
    args = quality.make_parser().parse_args(["--settings", "W4A4", "--ranges", "searched"])
    assert "maxmin, own ranges" not in [row.label for row in rows.rows_of(args)]


def recipe_part(opt):
    kept = ("name", "weights", "activations", "balance", "branch")
    return {key: value for key, value in opt["quant"].items() if key in kept}


def test_without_training_no_rank_is_wasted(rows, options):
    trained, untrained = (
        options("W4A6", rows.OURS, "--steps", steps)["quant"]["branch"] for steps in ("9", "0")
    )
    assert trained == {"svd": 7, "distill": 1} and untrained == {"svd": 8}


def test_methods_that_train_have_a_row_per_seed(quality, rows, options, tables):
    args = quality.make_parser().parse_args(["--settings", "W4A4", "--seeds", "3"])
    found = rows.rows_of(args)
    seeds = {row.method: [x.seed for x in found if x.method == row.method] for row in found}
    assert seeds[rows.OURS] == [0, 1, 2] and seeds["maxmin"] == [0, 0]
    assert seeds["efficientdm"] == 2 * [0, 1, 2]
    assert len({row.label for row in found}) == len(found)
    first, last = (rows.options_of(rows.Row("W4A4", rows.OURS, seed=seed), args) for seed in (0, 2))
    assert last["manual_seed"] == first["manual_seed"] + 2
    assert last["datasets"]["train"]["seed"] == first["datasets"]["train"]["seed"] + 2
    results = {
        rows.Row("W4A4", method, seed=seed): {"faces": {"a": {"psnr": 30.0 + seed}}}
        for method, seed in (("maxmin", 0), (rows.OURS, 0), (rows.OURS, 1), (rows.OURS, 2))
    }
    (line,) = tables.seed_rows(results, ["psnr"])
    assert line["method"] == rows.OURS and line["psnr"] == "31.0000 ± 1.0000"


def test_mixed_widths_are_those_of_each_methods_map(quality, rows, options):
    for method, name in ((rows.OURS, "a.yml"), ("mixdq", "b.yml")):
        opt = options("MP", method, "--bit-map", "a.yml", "--mixdq-map", "b.yml")
        assert opt["quant"]["bit_map"] == name
        assert not options("W4A6", method)["quant"]["bit_map"]
    assert options("W4A4", rows.OURS)["quant"]["bit_map"] == "options/maps/mini_w4a4.yml"
    args = quality.make_parser().parse_args(["--settings", "MP", "W4A4", "--ranges", "own"])
    found = rows.rows_of(args)
    assert [row.method for row in found if row.setting == "MP"] == ["mixdq", rows.OURS]
    assert len(found) == 2 + len(rows.PEERS) + 1


def test_the_second_table_has_each_methods_own_granularity(quality, rows, options):
    grouped = options("W4A4", "svdquant", "--own")["quant"]
    assert grouped["weights"]["granularity"] == grouped["activations"]["granularity"] == "group"
    assert grouped["weights"]["range"] == "minmax"
    assert options("W4A4", "quarot", "--own")["quant"]["activations"]["symmetric"]
    args = quality.make_parser().parse_args(["--own", "--settings", "W4A4"])
    assert {row.method for row in rows.rows_of(args)} == set(rows.OWN)
    assert "granularity" not in options("W4A4", "svdquant")["quant"]["weights"]


def test_a_learning_rate_at_the_edge_of_its_sweep_is_named(rows):
    notes = rows.edge_notes(rows.PEERS)
    assert [note.split(":")[0] for note in notes] == ["q_diffusion"]
    assert "0.1, is the largest of the 5" in notes[0] and "a larger one may" in notes[0]
    assert set(rows.SWEEPS) == {
        method
        for method in rows.PEERS
        if (train := rows.read_recipe(f"peers/{method}")["train"])["total_iter"]
        or "reconstruction" in train
    }
    assert all(
        rows.learning_rate(rows.read_recipe(f"peers/{method}")) in tried
        for method, tried in rows.SWEEPS.items()
    )


def test_faces_of_one_name_in_two_folders_are_two_faces(quality, tmp_path):
    cells, faces = importlib.import_module("cells"), [tmp_path / "a/1.jpg", tmp_path / "b/1.jpg"]
    table = cells.Cells(faces, tmp_path, "mini", 1, dict)
    assert len({table.image(cells.FULL, face) for face in faces}) == 2
    assert len({cells.identified("x", {}, [face])["name"] for face in faces}) == 2
    roots = ("/data/faces", "/home/me/faces", "/data/others")
    names = [cells.identified("x", {"a": {"root": root}}, faces)["name"] for root in roots]
    assert names[0] == names[1] != names[2]


def test_a_bit_map_with_other_contents_is_another_cell(quality, tmp_path):
    cells, path = importlib.import_module("cells"), tmp_path / "map.yml"
    names = []
    for text in ("a", "b", "a"):
        path.write_text(text)
        names.append(cells.identified("x", {"quant": {"bit_map": str(path)}}, [])["name"])
    assert names[0] == names[2] != names[1]


def test_intervals_hold_the_mean_and_shrink_with_faces(tables):
    mean, low, high = tables.interval(np.full(20, 0.5))
    assert mean == low == high == 0.5
    rng = np.random.default_rng(1)
    values = rng.normal(1, 1, 400)
    wide, narrow = (tables.interval(values[:count]) for count in (20, 400))
    assert narrow[0] == pytest.approx(values.mean()) and narrow[1] < narrow[0] < narrow[2]
    assert narrow[2] - narrow[1] < 0.5 * (wide[2] - wide[1])
    # Of a mean of 400: its standard error is 1/20.
    assert narrow[2] - narrow[1] == pytest.approx(2 * 1.96 / 20, rel=0.15)


@pytest.mark.parametrize(
    ("count", "gap", "closed"), [(2, 0.5, 0.0), (5, 3.0, 0.4), (40, 0.01, 1.0), (9, 5.0, -2.0)]
)
def test_shares_of_a_gap_and_their_intervals(tables, count, gap, closed):
    rng = np.random.default_rng(count)
    peer = rng.normal(20, 5, count)
    full = peer + gap
    # A method closes 0 of its own gap, and full precision all of it, whatever is drawn.
    assert tables.share(peer, peer, full) == (0, 0, 0)
    assert tables.share(full, peer, full) == pytest.approx((1, 1, 1))
    assert tables.share(peer + closed * gap, peer, full) == pytest.approx((closed,) * 3)
    assert tables.share(-peer - closed * gap, -peer, -full, lower=True) == pytest.approx(
        (closed,) * 3
    )
    # The faces of a sample are the same for all three, however much their gaps differ.
    uneven = peer + gap * rng.uniform(0.5, 2, count)
    found = tables.share(peer + closed * (uneven - peer), peer, uneven)
    assert found == pytest.approx((closed,) * 3)
    # Without a gap, a share means nothing, nor where full precision is worse.
    assert tables.share(full, peer, peer) is None
    assert tables.share(full, peer, full, lower=True) is None
    assert tables.share(full, peer, peer + np.where(np.arange(count) % 2, 1, -1)) is None


def test_equally_good_methods_close_a_share_around_0(tables):
    rng = np.random.default_rng(3)
    full = rng.normal(30, 3, 100)
    ours, peer = (full - 4 + rng.normal(0, 1, 100) for _ in range(2))
    value, low, high = tables.share(ours, peer, full)
    assert low < 0 < high and low < value < high and high - low < 0.2
    # Pairing counts: faces that differ from each other by much do not widen the interval.
    assert high - low < 0.1 * np.std(full)


@pytest.fixture
def found(tables):
    def build(*values, size=100):
        scores = {f"{place}": dict.fromkeys(tables.FIGURES, v) for place, v in enumerate(values)}
        return {"faces": scores, "bytes": size}

    return build


def test_differences_are_paired_and_gaps_are_shares(rows, tables, found):
    ours, worse = rows.Row("W4A4", rows.OURS), rows.Row("W4A4", "svdquant")
    mixed = rows.Row("MP", rows.OURS)
    results = {worse: found(10, 20), ours: found(13, 23), mixed: found(14, 24)}
    lines = tables.paired_rows(results, tables.FIGURES)
    assert [(line["setting"], line["method"]) for line in lines] == [
        ("W4A4", "svdquant, own ranges"),
        ("MP", rows.OURS),
    ]
    # Faces differ by ten, methods by three at each of them: the interval has no width.
    assert lines[0]["psnr"] == "-3.0000 [-3.0000, -3.0000]"
    assert lines[1]["psnr"] == "+1.0000 [+1.0000, +1.0000]"
    gaps = tables.gap_rows(results, found(14, 24), tables.FIGURES)
    assert [(line["setting"], line["psnr"]) for line in gaps] == [
        ("W4A4", "75 % [75, 75]"),
        ("MP", "100 % [100, 100]"),
    ]


def test_the_best_peer_of_the_same_size_is_named(rows, tables, found):
    ours = rows.Row("W4A4", rows.OURS)
    small, large = rows.Row("W4A4", "maxmin"), rows.Row("W4A4", "svdquant")
    results = {ours: found(5, 6), small: found(4, 5, size=100), large: found(9, 9, size=102)}
    best = {line["figure"]: line for line in tables.best_rows(results, tables.FIGURES)}
    # A larger file does not count, however good it is.
    assert {line["best peer no larger"] for line in best.values()} == {"maxmin, own ranges"}
    assert best["psnr"]["ahead"] == rows.OURS
    # Of a distance, less is better.
    assert best["vre"]["ahead"] == "maxmin, own ranges"
    said = tables.verdict(list(best.values()))
    assert "vre at W4A4" in said and "psnr" not in said
    results[large] = found(9, 9, size=100.5)
    best = {line["figure"]: line for line in tables.best_rows(results, tables.FIGURES)}
    assert best["psnr"]["ahead"] == "svdquant, own ranges"
    results = {ours: found(5, 6), small: found(4, 7)}
    assert {line["ahead"] for line in tables.best_rows(results, tables.FIGURES)} == {""}


def test_a_run_that_was_killed_while_scoring_does_not_train_again(modules, tmp_path, monkeypatch):
    cells, shown = importlib.import_module("cells"), []
    table = cells.Cells([], tmp_path, "mini", 1, dict)
    monkeypatch.setattr(table, "train", lambda opt: pytest.fail("it trained again"))
    monkeypatch.setattr(cells, "load_model", lambda path, **_: shown.append(path))
    done = tmp_path / "experiments/cell/models/net_g_latest.safetensors"
    done.parent.mkdir(parents=True)
    done.write_bytes(b"complete")
    assert table.run({"name": "cell"}) == {"faces": {}, "bytes": 8} and shown == [done]


@pytest.mark.slow
def test_smoke_run(run_program, tmp_path):
    out = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "png")}
    files = ("--json", out["json"], "--csv", out["csv"], "--sheet", out["png"])
    run_program("benchmarks/quality.py", "--smoke", "--threads", "1", *files)
    document = json.loads(out["json"].read_text())
    rows = document["rows"]
    names = ["maxmin, searched ranges", "quantface"]
    assert [(row["method"], row["steps"]) for row in rows] == list(zip(names, (0, 1), strict=True))
    assert all(10 < row["psnr_fp"] < 60 and 0 < row["haarpsi"] < 1 for row in rows)
    # A smoke run leaves most of the network in floating point, which has 15.5 MB.
    assert all(13 < row["MB"] < 15 and row["Gop"] > 1 for row in rows)
    assert all(0 < row["bytes"] - 1e6 * row["MB"] < 2e5 for row in rows)
    assert [line["method"] for line in document["paired"]] == names[:1]
    assert [line["gap of"] for line in document["shares"]] == names[:1]
    assert {line["figure"] for line in document["best"]} >= {"psnr", "ssim"}
    assert [row["method"] for row in csv.DictReader(out["csv"].open())] == names
    sheet = cv2.imread(str(out["png"]))
    # Two faces; input, full precision, two methods, clean.
    assert sheet.shape[1] > 2 * sheet.shape[0] and sheet.std() > 20
