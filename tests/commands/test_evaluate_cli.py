"""scripts/evaluate.py as a user runs it, and the file that its figures are kept in."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from programs import run_program
from skimage.metrics import structural_similarity

from quantface_arch.errors import UsageError
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.metrics.scores import ScoreFile

FAST = ["psnr", "ssim", "edge_psnr", "sharpness"]
COUNT = 4


@pytest.fixture
def folders(tmp_path, repo):
    """Clean pictures of 192 pixels, and restored ones of the same names, blurred and noisy."""
    face = cv2.imread(str(repo / "inputs/astronaut_closeup.jpg"))
    rng = np.random.default_rng(0)
    restored, clean = tmp_path / "restored", tmp_path / "clean"
    restored.mkdir(), clean.mkdir()
    for index in range(COUNT):
        picture = cv2.resize(face[10 * index :], (192, 192), interpolation=cv2.INTER_AREA)
        blurry = cv2.GaussianBlur(picture, (0, 0), 0.5 + index)
        spoiled = np.clip(blurry + rng.normal(0, 4, blurry.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(clean / f"{index}.png"), picture)
        cv2.imwrite(str(restored / f"{index}.png"), spoiled)
    return restored, clean


def command(repo, restored, clean, *more):
    start = [sys.executable, str(repo / "scripts/evaluate.py"), "-r", str(restored)]
    return [*start, *(["-g", str(clean)] if clean else []), *map(str, more)]


@pytest.fixture
def evaluate(repo, tmp_path, monkeypatch):
    """Run the command to its end, with empty caches and no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")

    def run(*args):
        return run_program(*command(repo, *args)[1:], cwd=tmp_path)

    return run


@pytest.fixture
def quickly(repo, capsys, monkeypatch, load_script):
    """Run the command in this process; returns its status and what it printed."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")
    module = load_script("evaluate")

    def run(*args):
        args = module.make_parser().parse_args(command(repo, *args)[2:])
        args.debug = False
        return module.main(args), capsys.readouterr().out

    return run


def read_csv(path):
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def read_table(text):
    """Metric → (mean, pictures) of the markdown table."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == ["metric", "mean", "better", "images"]
    return {name: (float(mean), count) for name, mean, _, count in lines[1:]}


@pytest.mark.slow
def test_figures_are_those_of_the_metrics_and_of_score_py(evaluate, folders, tmp_path, repo):
    file = tmp_path / "scores.csv"
    done = evaluate(*folders, "--metrics", *FAST, "niqe", "lpips", "lpips", "--csv", file)
    assert done.returncode == 0, done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 1 and "skipped lpips: no file" in skipped[0]
    assert "alexnet" in skipped[0] and f"{COUNT}/{COUNT}" in done.stderr

    rows, table = read_csv(file), read_table(done.stdout)
    assert list(rows) == [f"{index}.png" for index in range(COUNT)]
    assert list(table) == [*FAST, "niqe"]
    for name, (mean, count) in table.items():
        values = [float(row[name]) for row in rows.values()]
        assert (mean, count) == (pytest.approx(np.mean(values), abs=1e-4), str(COUNT))
    for name in [*FAST, "niqe"]:
        pair = [cv2.imread(str(folder / "1.png")) for folder in folders]
        assert float(rows["1.png"][name]) == METRICS[name](*pair)

    theirs = json.loads(run_program(repo / "benchmarks/score.py", *folders, "--size", 192).stdout)
    for name in FAST:
        assert table[name][0] == pytest.approx(theirs[name], abs=2e-4)
    gauss = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(*pair, channel_axis=2, data_range=255, **gauss)
    assert float(rows["1.png"]["ssim"]) == pytest.approx(ssim, abs=1e-6)


def test_a_second_run_computes_what_is_missing_or_has_changed(quickly, folders, tmp_path):
    file = tmp_path / "scores.csv"
    quickly(*folders, "--metrics", "psnr", "--csv", file)
    # Figures that a computation would not give show which rows were taken as they are.
    rows = read_csv(file)
    lines = file.read_text().splitlines()
    marked = [lines[0], *(line.rsplit(",", 1)[0] + f",{i}.5" for i, line in enumerate(lines[1:]))]
    file.write_text("\n".join(marked) + "\n")
    shutil.copy(folders[1] / "2.png", folders[0] / "2.png")
    status, printed = quickly(*folders, "--metrics", "psnr", "haarpsi", "--csv", file)
    assert status == 0
    again = read_csv(file)
    assert [again[name]["psnr"] for name in rows] == ["0.5", "1.5", "inf", "3.5"]
    assert read_table(printed)["psnr"] == (pytest.approx(5.5 / 3, abs=1e-4), "3")
    assert f"psnr: infinite for 1 of {COUNT}, left out of the mean" in printed
    assert all(0 < float(row["haarpsi"]) <= 1.001 for row in again.values())
    _, printed = quickly(*folders, "--metrics", "haarpsi", "psnr", "--csv", file)
    assert f"{COUNT} of {COUNT} images were in {file} already" in printed
    assert list(read_table(printed)) == ["haarpsi", "psnr"]
    assert read_csv(file) == again


@pytest.mark.slow
def test_a_killed_run_loses_no_row_and_goes_on(repo, evaluate, folders, tmp_path):
    file = tmp_path / "scores.csv"
    args = (*folders, "--metrics", "psnr", "vre", "niqe", "--csv", file)
    process = subprocess.Popen(command(repo, *args), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (file.exists() and file.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_csv(file)
    assert 1 <= len(kept) < COUNT
    done = evaluate(*args)
    assert done.returncode == 0 and "images were in" in done.stdout
    rows = read_csv(file)
    assert len(rows) == COUNT and all(rows[name] == row for name, row in kept.items())


@pytest.mark.slow
def test_pictures_that_fail_are_named_and_the_others_are_done(evaluate, folders, tmp_path):
    restored, clean = folders
    (restored / "0.png").write_bytes((restored / "0.png").read_bytes()[:2000])
    cv2.imwrite(str(clean / "1.png"), np.zeros((100, 192, 3), np.uint8))
    (clean / "2.png").rename(clean / "other.png")
    (clean / "3.png").rename(clean / "3.WEBP")
    small = np.random.default_rng(0).integers(0, 256, (170, 170, 3), np.uint8)
    for folder in folders:
        cv2.imwrite(str(folder / "small.png"), small)
        (folder / "notes.txt").write_text("not a picture")
    done = evaluate(*folders, "--metrics", "psnr", "niqe", "--csv", tmp_path / "scores.csv")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for words in (
        f"error: {restored / '0.png'}: cannot be read",
        f"error: {restored / '1.png'}: 192x192 pixels, but {clean / '1.png'} has 192x100",
        f"error: {restored / '2.png'}: no image of that name in {clean}",
        f"error: {clean / 'other.png'}: no image of that name in {restored}",
        f"error: {restored / 'small.png'}: niqe: found 170x170 pixels, at least 192",
    ):
        assert words in done.stderr
    assert done.stderr.count("error:") == 5
    rows, table = read_csv(tmp_path / "scores.csv"), read_table(done.stdout)
    assert list(rows) == ["3.png", "small.png"] and rows["small.png"]["niqe"] == ""
    assert table["psnr"][1] == "1" and table["niqe"] == (
        pytest.approx(float(rows["3.png"]["niqe"]), abs=1e-4),
        "1",
    )


def test_without_clean_pictures_the_metrics_that_need_them_are_skipped(quickly, folders):
    status, printed = quickly(folders[0], None)
    lines = [line for line in printed.splitlines() if line.startswith("skipped ")]
    table = read_table(printed)
    assert status == 0 and list(table) == ["niqe"] and math.isfinite(table["niqe"][0])
    skipped = {line.split()[1].rstrip(":"): line for line in lines}
    assert set(skipped) == set(METRICS) - {"niqe", "lmd_detector"}
    assert all("clean images" in skipped[name] for name in ("psnr", "vre", "lpips", "deg", "fid"))


@pytest.mark.slow
@pytest.mark.parametrize("change", [["--metrics", "ssmi"], ["--csv", "README.md"]])
def test_wrong_usage_is_one_line_and_nothing_is_done(evaluate, folders, tmp_path, change):
    (tmp_path / "README.md").write_text("a file of somebody\n")
    done = evaluate(*folders, *change)
    assert done.returncode == 2
    assert change[0] in done.stderr and change[1] in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == "a file of somebody\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-g", "nowhere"), "nowhere: no such folder"),
        (("--weights-dir", "nowhere"), "--weights-dir nowhere: no such folder"),
        (("--fid-gt", "nowhere"), "--fid-gt nowhere: no such folder"),
        (("--device", "abacus"), "unknown --device 'abacus'"),
        (("--metrics", "deg", "lmd"), "none of these metrics can be computed here"),
        (("--metrics", "niqe", "vre"), "--metrics vre: it needs clean images: give -g"),
        (("-r", "empty"), "empty: no image in this folder"),
        (("-g", "other"), "have no images of the same names"),
        (("-g", "twice"), "which one is to be compared"),
    ],
)
def test_what_is_typed_wrong_is_named(quickly, folders, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    for folder, names in (("empty", ()), ("other", ["a.png"]), ("twice", ["0.png", "0.bmp"])):
        Path(folder).mkdir()
        for name in names:
            shutil.copy(folders[0] / "0.png", Path(folder, name))
    clean = None if "vre" in options else folders[1]
    with pytest.raises(UsageError, match=re.escape(words)):
        quickly(folders[0], clean, *options)


class TestScoreFile:
    IMAGES = ("a.png", "b,c.png", "d.png")

    def open(self, path, metrics=("psnr", "vre")):
        return ScoreFile(path, metrics, self.IMAGES)

    def test_rows_are_in_the_file_before_it_is_closed_and_survive(self, tmp_path):
        path = tmp_path / "new/scores.csv"
        scores = self.open(path)
        scores.add("b,c.png", "1f", {"psnr": math.inf, "vre": 0.1 + 0.2})
        scores.add("a.png", "2e", {"vre": 1.0})
        again = self.open(path, ("lpips",))
        assert again.known("b,c.png", "1f") == {"psnr": math.inf, "vre": 0.1 + 0.2}
        assert again.known("a.png", "2e") == {"vre": 1.0}
        assert again.known("a.png", "another") == again.known("d.png", "2e") == {}
        again.close()
        assert path.read_text().splitlines()[0] == "image,digest,psnr,vre,lpips"
        assert list(read_csv(path)) == ["a.png", "b,c.png"]

    def test_a_row_cut_short_does_not_count(self, tmp_path):
        path = tmp_path / "scores.csv"
        scores = self.open(path)
        scores.add("a.png", "2e", {"psnr": 30.0, "vre": 1.0})
        scores.add("d.png", "2f", {"psnr": 31.0, "vre": 2.625})
        whole = path.read_bytes()
        for length in range(whole.rindex(b"d.png"), len(whole)):
            path.write_bytes(whole[:length])
            again = self.open(path)
            assert again.known("a.png", "2e") and not again.known("d.png", "2f")

    def test_means_are_of_the_pictures_of_this_run(self, tmp_path):
        scores = self.open(tmp_path / "scores.csv")
        for image in self.IMAGES:
            scores.add(image, "1f", {"psnr": 30.0})
        again = self.open(tmp_path / "scores.csv")
        assert again.column("psnr") == []
        again.known("a.png", "1f")
        again.known("d.png", "changed")
        again.add("b,c.png", "changed", {"psnr": 20.0})
        assert again.column("psnr") == [30.0, 20.0] and again.column("vre") == []

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("image,digest,psnr\nelsewhere.png,1f,3\n", "not in this run .elsewhere.png"),
            ("image,digest,psnr\na.png,1f,high\n", "high"),
            ("name,psnr\na.png,3\n", "not a table"),
        ],
    )
    def test_other_files_are_left_alone(self, tmp_path, text, words):
        path = tmp_path / "scores.csv"
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            self.open(path)
        assert path.read_text() == text
