"""The options files of the standard test sets: the paper's metrics, run on a set as laid out."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import re
import sys

import cv2
import pytest
import yaml
from loops import SMALL, load_options, write_images
from testset_files import SETS, make, prepare

import quantface_arch.register  # noqa: F401
from basicsr.archs import build_network
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import UsageError
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.metrics.networks import FILES
from quantface_arch.quant import quant_layers


@pytest.fixture
def script(load_script, tmp_path, monkeypatch):
    """The command's module, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return load_script("prepare_testset")


def columns(repo, name):
    """The metrics of the paper's table of a set, without the direction and the set's prefix."""
    file, prefix = ("celeba", "") if name == "celeba" else ("realworld", name.removesuffix("photo"))
    with (repo / f"docs/paper/{file}_test.csv").open(newline="") as lines:
        head = next(csv.reader(lines))[2:]
    found = [column.rpartition("_")[0] for column in head]
    found = [column.removeprefix(f"{prefix}_") for column in found if column.startswith(prefix)]
    return {"fid" if column.startswith("fid") else column for column in found}


@pytest.mark.parametrize("name", SETS)
def test_an_options_file_has_the_papers_metrics(repo, name):
    opt = load_options(repo / f"options/testsets/{name}.yml")
    metrics = opt["val"]["metrics"]
    assert {*metrics, "fid"} == columns(repo, name)
    paired = name == "celeba"
    for key, options in metrics.items():
        assert options["type"] == METRICS[key].type
        assert paired or not METRICS[key].reference
        assert ("download" in options) == (key in FILES)
    assert ("dataroot_gt" in opt["datasets"]["test_1"]) == paired


@pytest.mark.slow
def test_the_options_files_share_a_network_of_any_checkpoint(repo):
    files = [load_options(repo / f"options/testsets/{name}.yml") for name in SETS]
    network = files[0]["network_g"]
    assert all(opt["network_g"] == network for opt in files)
    net = build_network({**network, "weights": "mini-w4a8"})
    assert net.arch_options["preset"] == "mini2" and any(True for _ in quant_layers(net))


@pytest.fixture
def run_test(tmp_path, monkeypatch, caplog):
    """BasicSR's test loop in this process; returns what it logged."""
    from basicsr.test import test_pipeline

    logger = logging.getLogger("basicsr")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)

    def run(opt):
        path = tmp_path / "options.yml"
        path.write_text(yaml.safe_dump(opt))
        monkeypatch.setattr(sys, "argv", ["test.py", "-opt", str(path)])
        test_pipeline(str(tmp_path))
        return caplog.text

    yield run
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("name", SETS)
def test_a_prepared_set_runs_through_the_test_loop(repo, script, tmp_path, run_test, name):
    words = ["-i", make(tmp_path / "low")]
    words += ["-g", make(tmp_path / "clean")] if name == "celeba" else []
    prepare(script, name, *words)
    # A network as narrow as this one takes a minute for a picture of 512 pixels.
    for path in (tmp_path / "datasets").rglob("*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (192, 192)))
    opt = load_options(repo / f"options/testsets/{name}.yml")
    opt["num_gpu"] = 0
    opt["network_g"].update(weights=None, arch=SMALL)
    metrics = opt["val"]["metrics"]
    opt["val"]["metrics"] = {
        key: value for key, value in metrics.items() if "download" not in value
    }
    if name == "celeba":
        opt["val"]["metrics"]["psnr"] = {"type": "calculate_psnr", "crop_border": 0}
    logged = run_test(opt)
    for key in opt["val"]["metrics"]:
        assert re.search(rf"# {key}: \d+\.\d+", logged), logged
    folder = tmp_path / f"results/{name}_test/visualization/{name}_test"
    assert sorted(os.listdir(folder)) == [f"{index}_{name}_test.png" for index in range(2)]
    text = (repo / f"options/testsets/{name}.yml").read_text()
    assert f"-r {folder.relative_to(tmp_path)} " in text


def test_fid_compares_with_a_folder_of_other_names(load_script, tmp_path, monkeypatch, capsys):
    evaluate = load_script("evaluate")

    def count(img, img2, **_):
        return 10 * len(os.listdir(img)) + len(os.listdir(img2))

    # In place of FID's network, whose weights are 90 MB: what it is given.
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "calculate_count", count)
    fid = dataclasses.replace(METRICS["fid"], type="calculate_count")
    monkeypatch.setitem(METRICS, "fid", fid)
    monkeypatch.delitem(FILES, "fid")
    write_images(tmp_path / "restored", 2, 32)
    write_images(tmp_path / "clean", 5, 32)
    (tmp_path / "clean/0.png").rename(tmp_path / "clean/other.png")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        args = ["-r", "restored", "--metrics", "fid", *words]
        assert evaluate.main(evaluate.make_parser().parse_args(args)) == 0
        return re.search(r"\| fid \| ([\d.]+) \|", capsys.readouterr().out)[1]

    assert float(run("--fid-gt", "clean")) == 25
    with pytest.raises(UsageError, match="clean images"):
        run()
    with pytest.raises(UsageError, match="--fid-gt nowhere: no such folder"):
        run("--fid-gt", "nowhere")


@pytest.mark.parametrize(
    ("title", "file", "prefix"),
    [
        ("CelebA-Test", "celeba_test", ""),
        ("WebPhoto-Test", "realworld_test", "web_"),
        ("LFW-Test", "realworld_test", "lfw_"),
        ("Wider-Test", "realworld_test", "wider_"),
    ],
)
def test_the_page_shows_the_papers_figures_as_they_are(repo, title, file, prefix):
    table = (repo / "docs/test_sets.md").read_text().split(f"\n### {title}\n")[1].split("\n#")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    shown = [cells for cells in lines if cells and cells[0][0].isdigit() and cells[1] != "*here*"]
    with (repo / f"docs/paper/{file}.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    keys = [key for key in rows[0] if key in ("bits", "method") or key.startswith(prefix)]
    assert shown == [[row[key] for key in keys] for row in rows]
