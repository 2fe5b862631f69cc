"""A checkout without any data set: the shipped faces calibrate, train and validate."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from loops import load_options

import quantface_arch.register  # noqa: F401
from basicsr.data import build_dataset
from quantface_arch.data import QuantFaceDataset, QuantFacePairedDataset, default_faces
from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import find_images, load_rgb, read_size

ROOT = Path(default_faces.__file__).parent / "faces"
NOTICE = "no folder datasets/faces"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A working folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(repo, fresh):
    """Run a command of the repository far from any data; returns what subprocess does."""

    def call(script, *words):
        env = {**os.environ, "PYTHONPATH": str(repo), "QUANTFACE_DATA": str(fresh / "nowhere")}
        command = [sys.executable, str(repo / script), *map(str, words)]
        return subprocess.run(command, cwd=fresh, env=env, capture_output=True, text=True)

    return call


@pytest.fixture
def train(repo, run, fresh):
    """Run the training command, with its experiments in the working folder."""
    (fresh / "basicsr").mkdir()
    script = shutil.copy(repo / "basicsr/train.py", fresh / "basicsr/train.py")
    return lambda *words: run(script, "-opt", repo / "options/quantface_w4.yml", *words)


@pytest.fixture
def forced():
    """The smallest run of an options file: NAME=VALUE words for --force_yml."""
    small = {
        "num_gpu": 0,
        "datasets:train:gt_size": 32,
        "datasets:train:batch_size_per_gpu": 1,
        "datasets:train:num_worker_per_gpu": 0,
        "datasets:train:persistent_workers": "false",
        "datasets:train:dataset_enlarge_ratio": 1,
        "quant:balance:kind": "scale",
        "quant:calibration:num_images": 1,
        "quant:calibration:size": 64,
        "train:total_iter": 1,
    }
    return ["--force_yml", *(f"{name}={value}" for name, value in small.items())]


def people():
    with (ROOT / "people.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_shipped_faces_are_listed_small_and_licensed():
    files = [str(path.relative_to(ROOT)) for path in find_images(ROOT)]
    assert sorted(row["file"] for row in people()) == files
    assert 64 <= len(files) <= 96
    assert {read_size(ROOT / name) for name in files} == {(256, 256)}
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 3e6
    assert "CC0 1.0" in (ROOT / "LICENSE-CC0.txt").read_text()


def test_shipped_faces_are_balanced():
    ages = Counter(min((int(row["age"]) - 15) // 15, 3) for row in people())
    sexes = Counter(row["sex"] for row in people())
    regions = Counter(row["region"] for row in people())
    assert len(ages) == 4 and min(ages.values()) > 15
    assert set(sexes) == {"man", "woman"} and min(sexes.values()) > 40
    assert len(regions) == 5 and min(regions.values()) > 12


def test_no_shipped_face_is_held_out_for_evaluation():
    for row in people():
        name = f"sd3_{Path(row['file']).stem}"
        assert int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 != 0, name


@pytest.mark.parametrize("gt_size", [128, 512])
def test_a_missing_default_folder_falls_back(fresh, gt_size):
    dataset = QuantFaceDataset({"dataroot_gt": "datasets/faces", "gt_size": gt_size})
    assert len(dataset) == len(find_images(ROOT / "train"))
    sample = dataset[0]
    assert sample["gt"].shape == sample["lq"].shape == (3, gt_size, gt_size)
    assert sample["gt"].min() >= 0 and sample["gt"].max() <= 1
    assert not torch.equal(sample["gt"], sample["lq"])


def test_another_missing_folder_is_an_error(fresh):
    with pytest.raises(QuantFaceError, match="no folder datasets/others"):
        QuantFaceDataset({"dataroot_gt": "datasets/others", "gt_size": 64})


def test_own_faces_come_first_and_are_never_enlarged(fresh):
    own = fresh / "datasets/faces"
    own.mkdir(parents=True)
    (own / "mine.jpg").write_bytes(find_images(ROOT / "val")[0].read_bytes())
    assert len(QuantFaceDataset({"dataroot_gt": "datasets/faces", "gt_size": 64})) == 1
    with pytest.raises(QuantFaceError, match="gt_size 512: no picture"):
        QuantFaceDataset({"dataroot_gt": "datasets/faces", "gt_size": 512})


def pairs(repo, **options):
    opt = load_options(repo / "options/test_mini.yml")["datasets"]["test_1"]
    return build_dataset({**opt, "phase": "test", "scale": 1, **options})


def test_validation_pairs_are_made_on_the_fly(repo, fresh):
    dataset = pairs(repo)
    assert isinstance(dataset, QuantFacePairedDataset)
    assert len(dataset) == len(find_images(ROOT / "val"))
    first, again = dataset[2], dataset[2]
    assert first["gt"].shape == first["lq"].shape == (3, 512, 512)
    assert torch.equal(first["lq"], again["lq"]) and not torch.equal(first["lq"], first["gt"])


def test_validation_pairs_are_read_where_their_folders_are(repo, fresh):
    done = subprocess.run([sys.executable, repo / "benchmarks/make_lq.py"], capture_output=True)
    assert done.returncode == 0, done.stderr
    dataset = pairs(repo)
    assert dataset[0]["gt_path"].startswith("datasets/faces_val/gt")
    low = load_rgb(dataset[0]["lq_path"])
    assert torch.equal(dataset[0]["lq"].mul(255).round().byte(), torch.tensor(low).permute(2, 0, 1))
    with pytest.raises((AssertionError, OSError)):
        pairs(repo, dataroot_gt="elsewhere/gt", dataroot_lq="elsewhere/lq")


def mini_options(repo):
    files = [*repo.glob("options/*.yml"), *repo.glob("options/peers/*.yml")]
    return sorted(path.relative_to(repo) for path in files)


def test_every_options_file_of_the_mini_finds_faces(repo, fresh):
    """Data sets are built as the files stand, at the size of calibration too."""
    paths = mini_options(repo)
    assert len(paths) >= 19
    for path in paths:
        opt = load_options(repo / path)
        for phase, options in opt["datasets"].items():
            full = {"name": phase, "phase": phase.split("_")[0], "scale": 1, **options}
            dataset = build_dataset(full)
            size = (opt.get("quant") or {}).get("calibration", {}).get("size")
            if size is not None:
                assert build_dataset({**full, "gt_size": size})[0]["lq"].shape[-1] == size
            assert len(dataset) > 10, path


def test_training_from_the_repository_s_options(train, forced, fresh):
    done = train(*forced)
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    lines = [line for line in log.splitlines() if NOTICE in line]
    assert len(lines) == 1 and "80 faces" in lines[0] and str(ROOT / "train") in lines[0]
    assert (fresh / "experiments/quantface_w4/models/net_g_latest.safetensors").is_file()


def test_a_missing_folder_that_is_named_ends_the_training(train):
    done = train("--force_yml", "num_gpu=0", "datasets:train:dataroot_gt=datasets/mine")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: training faces: no folder datasets/mine")


def test_quantizing_without_faces_of_ones_own(run, fresh):
    words = ["--model", "mini", "--balance", "none", "--rank", 0, "--size", 64, "--num-images", 3]
    done = run("scripts/quantize.py", *words, "-o", fresh / "q.safetensors")
    assert done.returncode == 0, done.stderr
    assert (fresh / "q.safetensors").is_file()
    assert done.stderr.count(NOTICE) == 1
    again = run("scripts/quantize.py", *words, "-o", fresh / "again.safetensors")
    assert again.returncode == 0, again.stderr
    assert (fresh / "q.safetensors").read_bytes() == (fresh / "again.safetensors").read_bytes()


def test_hidden_files_beside_faces_are_left_out(run, fresh):
    folder = fresh / "own"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(find_images(ROOT / "val")[0].read_bytes())
    (folder / "._a.jpg").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    words = ["--model", "mini", "--balance", "none", "--rank", 0, "--size", 64, "-i", folder]
    done = run("scripts/quantize.py", *words, "-o", fresh / "q.safetensors")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["allocate_bits", "balance"])
def test_measuring_commands_calibrate_on_the_shipped_faces(repo, run, fresh, script):
    source = {"allocate_bits": "allocate_mini", "balance": "quantface_w4"}[script]
    opt = load_options(repo / f"options/{source}.yml")
    opt["quant"]["calibration"] = {"num_images": 1, "size": 32, "batch_size": 1}
    opt["quant"]["balance"] = {"kind": "scale"}
    if script == "allocate_bits":
        opt["allocate"].update(activations=[4, 8], macs_size=64)
        opt["allocate"]["budget"]["activation_bits"] = 6
    (fresh / "opt.yml").write_text(yaml.safe_dump(opt))
    suffix = {"allocate_bits": "yml", "balance": "safetensors"}[script]
    done = run(f"scripts/{script}.py", "-opt", "opt.yml", "--out", f"out.{suffix}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(NOTICE) == 1 and (fresh / f"out.{suffix}").is_file()


def test_a_benchmark_says_that_it_uses_the_shipped_faces(run):
    done = run("benchmarks/folding.py", "--smoke")
    assert done.returncode == 0, done.stderr
    assert "using the shipped faces" in done.stderr
