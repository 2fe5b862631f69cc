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
from loops import SMALL, load_options, shrink
from programs import run_program

import quantface_arch.register  # noqa: F401
from basicsr.data import build_dataset
from quantface_arch.archs.build import build_arch
from quantface_arch.data import QuantFaceDataset, QuantFacePairedDataset, default_faces
from quantface_arch.data.calibration_faces import list_faces
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import save_checkpoint
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
        return run_program(repo / script, *words, cwd=fresh, env=env)

    return call


@pytest.fixture
def train(repo, run, fresh):
    """Run the training command on options, with its experiments in the working folder."""
    (fresh / "basicsr").mkdir()
    script = shutil.copy(repo / "basicsr/train.py", fresh / "basicsr/train.py")

    def call(opt):
        (fresh / "opt.yml").write_text(yaml.safe_dump(opt))
        return run(script, "-opt", "opt.yml")

    return call


@pytest.fixture
def tiny(fresh):
    """A small restorer's file."""
    path = fresh / "tiny.safetensors"
    save_checkpoint(build_arch(SMALL), path, SMALL)
    return path


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
    with pytest.raises(QuantFaceError, match="gt_size 512: no image"):
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["datasets/faces", "datasets/mine"])
def test_training_falls_back_from_the_default_folder_alone(repo, train, fresh, folder):
    opt = load_options(repo / "options/quantface_w4.yml")
    assert opt["datasets"]["train"]["dataroot_gt"] == "datasets/faces"
    opt = shrink(opt, folder, steps=1)
    opt["quant"]["branch"] = {"svd": 0}
    done = train(opt)
    if folder == "datasets/mine":
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: training faces: no folder {folder}")
        return
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in (done.stdout + done.stderr).splitlines() if NOTICE in line]
    assert len(lines) == 1 and "80 faces" in lines[0] and str(ROOT / "train") in lines[0]
    assert list((fresh / "experiments/quantface_w4/models").glob("net_g_latest.*"))


@pytest.mark.slow
def test_quantizing_without_faces_of_ones_own(run, fresh, tiny):
    words = ["--model", tiny, "--balance", "none", "--rank", 0, "--size", 32, "--num-images", 3]
    done = run("scripts/quantize.py", *words, "-o", fresh / "q.safetensors")
    assert done.returncode == 0, done.stderr
    assert (fresh / "q.safetensors").is_file()
    assert done.stderr.count(NOTICE) == 1


def test_hidden_files_beside_degraded_faces_are_left_out(load_script, fresh):
    folder = fresh / "own/part"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "._a.jpg", ".b.png"):
        (folder / name).write_bytes(find_images(ROOT / "val")[0].read_bytes())
    (fresh / "own/.hidden").mkdir()
    shutil.copy(folder / "a.jpg", fresh / "own/.hidden/c.jpg")
    assert list_faces(fresh / "own") == [folder / "a.jpg"]
    assert find_images(fresh / "own") == [folder / "a.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["allocate_bits", "balance"])
def test_measuring_commands_calibrate_on_the_shipped_faces(repo, run, fresh, script):
    source = {"allocate_bits": "allocate_mini", "balance": "quantface_w4"}[script]
    opt = load_options(repo / f"options/{source}.yml")
    opt["network_g"] = {"type": "QuantFaceArch", "arch": SMALL, "weights": None}
    opt["quant"]["calibration"] = {"num_images": 1, "size": 32, "batch_size": 1}
    opt["quant"].update(balance={"kind": "scale"}, branch={"svd": 0}, bit_map=None)
    if script == "allocate_bits":
        opt["allocate"].update(activations=[4, 8], image_size=64)
        opt["allocate"]["budget"]["activation_bits"] = 6
    (fresh / "opt.yml").write_text(yaml.safe_dump(opt))
    suffix = {"allocate_bits": "yml", "balance": "safetensors"}[script]
    done = run(f"scripts/{script}.py", "-opt", "opt.yml", "--out", f"out.{suffix}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(NOTICE) == 1 and (fresh / f"out.{suffix}").is_file()


@pytest.mark.slow
def test_a_benchmark_says_that_it_uses_the_shipped_faces(run):
    done = run("benchmarks/folding.py", "--smoke")
    assert done.returncode == 0, done.stderr
    assert "using the shipped faces" in done.stderr
