"""Every benchmark runs: a table on its output and the same figures in its JSON file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BENCHMARKS = (
    "architectures",
    "background",
    "detectors",
    "folding",
    "hub_faults",
    "latency",
    "mini_quality",
    "osdface_memory",
    "osdface_training_memory",
    "paste",
    "restore_memory",
    "robustness",
    "robustness_fuzz",
    "roofline",
    "strength",
    "trained_networks",
    "video",
    "video_kinds",
    "web",
)
# These read weights that are not shipped.
NEED_DATA = ("trained_networks",)
# The parts of robustness, but for the one that is a benchmark by itself.
ARGUMENTS = {"robustness": ("kill", "soak", "throughput", "faults", "threads")}
# What they are made of, and those with tests of their own.
OTHERS = {
    # It downloads packages; test_light_install.py tests what it measures.
    "small_installation",
    *("make_lq", "score", "report", "cells", "sheet", "latency_rows", "detection_rows"),
    "face_metrics",
    *("compare_commits", "commit_probe"),
    *(
        "ablation",
        "quality",
        "quality_rows",
        "quality_tables",
        "sweep",
        "fuzz_commands",
        "fuzz_inputs",
        "fuzz_loops",
        "architecture_networks",
        "fuzz_targets",
        "batch_runs",
        "moving_face",
    ),
    *("web_browser", "web_client", "fault_commands", "small_networks", "hub_server"),
    *(f"robustness_{part}" for part in ("kill", "soak", "throughput", "faults", "threads")),
}


def test_every_benchmark_is_listed(repo):
    found = {path.stem for path in (repo / "benchmarks").glob("*.py")}
    assert found - OTHERS == set(BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_smoke_run(request, run_program, tmp_path, name):
    if name in NEED_DATA:
        request.getfixturevalue("data_root")
    words = ["--smoke", "--json", tmp_path / "out.json", *ARGUMENTS.get(name, ())]
    stdout = run_program(f"benchmarks/{name}.py", *words, timeout=300)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows and stdout.count("|") > 2 * len(rows)


@pytest.mark.slow
def test_command_lines_are_fuzzed(run_program):
    words = ("--targets", "command lines", "loops", "--inputs", 10, "--seconds", 250)
    cells = run_program("benchmarks/robustness_fuzz.py", *words).splitlines()[-3].split("|")
    inputs, accepted, refused, crashes = (int(cell) for cell in cells[2:6])
    assert inputs == accepted + refused == 10 and crashes == 0 < refused


@pytest.mark.slow
def test_the_release_gives_the_same_images(repo, run_program, tmp_path):
    history = subprocess.run(["git", "cat-file", "-e", "c592999"], cwd=repo, capture_output=True)
    if history.returncode:
        pytest.skip("the history of this checkout does not hold the release 0.1.0")
    words = ("--smoke", "--only", "images", "--json", tmp_path / "out.json")
    run_program("benchmarks/compare_commits.py", *words, timeout=300)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) >= 3 and {row["same to the last bit"] for row in rows} == {"yes"}


@pytest.mark.slow
def test_degraded_faces_score_as_expected(run_program, tmp_path, shipped_faces):
    clean = tmp_path / "clean"
    clean.mkdir()
    for source in shipped_faces[:2]:
        (clean / source.name).write_bytes(source.read_bytes())
    gt = tmp_path / "gt"
    run_program("benchmarks/make_lq.py", clean, tmp_path / "lq", "--gt-out", gt)

    def scored(folder):
        return json.loads(run_program("benchmarks/score.py", folder, gt))

    same, low = scored(gt), scored(tmp_path / "lq")
    assert same["ssim"] == same["sharpness"] == 1 and same["psnr"] > 100
    assert low["images"] == 2 and 15 < low["psnr"] < 40 and low["ssim"] < 1


def test_the_peak_of_memory_is_that_of_the_process_alone(repo):
    held = bytearray(os.urandom(2**20) * 400)
    code = "from report import peak_gb; print(peak_gb()); x = b'1' * 10**8; print(peak_gb())"
    child = [sys.executable, "-c", code]
    done = subprocess.run(child, cwd=repo / "benchmarks", capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    assert held and before < 0.1 and after - before == pytest.approx(0.1, abs=0.01), done.stderr
