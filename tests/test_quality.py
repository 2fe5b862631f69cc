"""benchmarks/quality.py: equal terms for all methods, paired figures, tables and a sheet."""

from __future__ import annotations

import csv
import importlib
import json

import cv2
import numpy as np
import pytest


@pytest.fixture
def quality(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("quality")


def options(quality, setting, method, *words):
    args = quality.make_parser().parse_args(list(words))
    return quality.options_of(quality.Row(setting, method), args)


@pytest.mark.slow
def test_every_method_gets_the_same_calibration_and_training(quality):
    for setting in quality.SETTINGS:
        ours = options(quality, setting, quality.OURS, "--steps", "70")
        for method in quality.PEERS:
            opt = options(quality, setting, method, "--steps", "70")
            assert opt["quant"]["name"] == ours["quant"]["name"] == quality.SETTINGS[setting][0]
            assert opt["quant"]["calibration"].items() <= ours["quant"]["calibration"].items()
            assert opt["train"]["total_iter"] in (0, 70) and ours["train"]["total_iter"] == 70
            assert opt["datasets"] == ours["datasets"]


def test_mixed_widths_are_those_of_each_methods_map(quality):
    for method, name in ((quality.OURS, "a.yml"), ("mixdq", "b.yml")):
        opt = options(quality, "MP", method, "--bit-map", "a.yml", "--mixdq-map", "b.yml")
        assert opt["quant"]["bit_map"] == name
        assert not options(quality, "W4A4", method)["quant"]["bit_map"]
    args = quality.make_parser().parse_args(["--settings", "MP", "W4A4"])
    rows = quality.rows_of(args)
    assert [row.method for row in rows if row.setting == "MP"] == ["mixdq", quality.OURS]
    assert len(rows) == 2 + len(quality.PEERS) + 1


def test_the_second_table_has_each_methods_own_granularity(quality):
    grouped = options(quality, "W4A4", "svdquant", "--own")["quant"]
    assert grouped["weights"]["granularity"] == grouped["activations"]["granularity"] == "group"
    assert grouped["weights"]["range"] == "minmax"
    assert options(quality, "W4A4", "quarot", "--own")["quant"]["activations"]["symmetric"]
    args = quality.make_parser().parse_args(["--own", "--settings", "W4A4"])
    assert {row.method for row in quality.rows_of(args)} == set(quality.OWN)
    assert "granularity" not in options(quality, "W4A4", "svdquant")["quant"]["weights"]


def test_faces_of_one_name_in_two_folders_are_two_faces(quality, tmp_path):
    cells, faces = importlib.import_module("cells"), [tmp_path / "a/1.jpg", tmp_path / "b/1.jpg"]
    table = cells.Cells(faces, tmp_path, "mini", 1, quality.figures)
    assert len({table.image(cells.FULL, face) for face in faces}) == 2
    assert len({cells.identified("x", {}, [face])["name"] for face in faces}) == 2
    roots = ("/data/faces", "/home/me/faces", "/data/others")
    names = [cells.identified("x", {"a": {"root": root}}, faces)["name"] for root in roots]
    assert names[0] == names[1] != names[2]


def test_intervals_hold_the_mean_and_shrink_with_faces(quality):
    mean, low, high = quality.interval(np.full(20, 0.5))
    assert mean == low == high == 0.5
    rng = np.random.default_rng(1)
    values = rng.normal(1, 1, 400)
    wide, narrow = (quality.interval(values[:count]) for count in (20, 400))
    assert narrow[0] == pytest.approx(values.mean()) and narrow[1] < narrow[0] < narrow[2]
    assert narrow[2] - narrow[1] < 0.5 * (wide[2] - wide[1])
    # Of a mean of 400: its standard error is 1/20.
    assert narrow[2] - narrow[1] == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_differences_are_paired_and_gaps_are_shares(quality):
    def found(*values):
        return {
            "faces": {
                f"{place}": dict.fromkeys(quality.FIGURES, v) for place, v in enumerate(values)
            }
        }

    ours, worse = quality.Row("W4A4", quality.OURS), quality.Row("W4A4", "svdquant")
    mixed = quality.Row("MP", quality.OURS)
    results = {worse: found(10, 20), ours: found(13, 23), mixed: found(14, 24)}
    lines = quality.paired_rows(results)
    assert [(line["setting"], line["method"]) for line in lines] == [
        ("W4A4", "svdquant"),
        ("MP", quality.OURS),
    ]
    # Faces differ by ten, methods by three at each of them: the interval has no width.
    assert lines[0]["psnr"] == "-3.0000 [-3.0000, -3.0000]"
    assert lines[1]["psnr"] == "+1.0000 [+1.0000, +1.0000]"
    gaps = quality.gap_rows(results, found(14, 24))
    assert [(line["setting"], line["psnr"]) for line in gaps] == [("W4A4", "75 %"), ("MP", "100 %")]


@pytest.mark.slow
def test_smoke_run(run_program, tmp_path):
    out = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "png")}
    files = ("--json", out["json"], "--csv", out["csv"], "--sheet", out["png"])
    run_program("benchmarks/quality.py", "--smoke", "--threads", "1", *files)
    document = json.loads(out["json"].read_text())
    rows = document["rows"]
    assert [(row["method"], row["steps"]) for row in rows] == [("svdquant", 0), ("quantface", 1)]
    assert all(10 < row["psnr_fp"] < 60 and 0 < row["haarpsi"] < 1 for row in rows)
    # A smoke run leaves most of the network in floating point, which has 15.5 MB.
    assert all(13 < row["MB"] < 15 and row["Gop"] > 1 for row in rows)
    assert document["paired"][0]["method"] == "svdquant"
    assert [row["method"] for row in csv.DictReader(out["csv"].open())] == ["svdquant", "quantface"]
    sheet = cv2.imread(str(out["png"]))
    # Two faces; input, full precision, two methods, clean.
    assert sheet.shape[1] > 2 * sheet.shape[0] and sheet.std() > 20
