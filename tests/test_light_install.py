"""Restoring needs only the packages of requirements-runtime.txt, and gives the same images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

# These are installed in the place of packages of requirements-runtime.txt, or needed by them.
OTHERS = {"opencv-python-headless": "opencv-python"}
PHOTO = "inputs/astronaut.jpg"
START = """
import runpy, sys
sys.path[:0] = [{packages!r}, {repo!r}]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def required(repo):
    lines = (repo / "requirements-runtime.txt").read_text().splitlines()
    return [re.match(r"[\w-]+", line)[0] for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def light(repo, tmp_path_factory):
    """Return a function that runs a script with nothing installed but those packages."""
    packages = tmp_path_factory.mktemp("packages")
    for name in required(repo):
        files = distribution(OTHERS.get(name, name)).files
        for top in {file.parts[0] for file in files if file.parts[0] != ".."}:
            site = Path(distribution(OTHERS.get(name, name)).locate_file(top))
            if top == "cv2":
                # It looks for its own files where it really is.
                shutil.copytree(site, packages / top)
            elif top != "__pycache__" and not (packages / top).exists():
                (packages / top).symlink_to(site)
    code = START.format(packages=str(packages), repo=str(repo))

    def run(*words, env=None):
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *map(str, words)],
            cwd=repo,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mini-w4a8", "mini-fast-w4a8"])
def test_shipped_models_restore_the_same_images(light, repo, tmp_path, model):
    words = [
        "inference/restore.py",
        "-i",
        PHOTO,
        "--model",
        model,
        "--offline",
        "-o",
    ]
    done = light(*words, tmp_path / "light")
    assert done.returncode == 0, done.stderr
    full = subprocess.run(
        [sys.executable, *map(str, words), tmp_path / "full"], cwd=repo, timeout=300, check=True
    )
    assert full.returncode == 0
    [light_image] = (tmp_path / "light/restored").iterdir()
    [full_image] = (tmp_path / "full/restored").iterdir()
    assert light_image.read_bytes() == full_image.read_bytes()


@pytest.mark.slow
def test_the_limit_on_identity_needs_no_more(light, data_root, tmp_path):
    weights = data_root / "weights/identity"
    words = ["inference/restore.py", "-i", PHOTO, "--offline", "--identity", "0.9"]
    done = light(*words, "--identity-weights", weights, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [line] = (tmp_path / "out/manifest-0.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["strength"][0] < 1
    done = light(*words, "-o", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--identity-weights" in done.stderr and not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--model", "mini-mp"), ".*mini-mp.safetensors, which is not compiled yet: .*torch"),
        (("--runtime", "reference"), "runtime reference: .*pip install"),
        (("--detector", "retinaface_resnet50"), "detector retinaface_resnet50: .*torch"),
        (("--bg-upsampler", "realesrgan_x2"), "--bg-upsampler: .*torch"),
        (("--whole", "--model", "realesrgan_x2"), "--whole: .*torch"),
        (("--fidelity", "0.5"), "--fidelity: .*torch"),
        (("--device", "cuda"), "--device cuda: .*torch"),
    ],
)
def test_what_needs_more_says_what_is_missing(light, tmp_path, words, named):
    out = tmp_path / "out"
    done = light("inference/restore.py", "-i", PHOTO, "-o", out, "--offline", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.match(f"error: {named}", done.stderr), done.stderr
    assert "pip install" in done.stderr and not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["restore", "app", "fetch", "doctor"])
def test_help_needs_no_more(light, command):
    done = light("quantface_arch/__main__.py", command, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_completion_needs_shtab_alone(light, tmp_path):
    words = ("quantface_arch/__main__.py", "--print-completion", "bash")
    done = light(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "shtab is not installed; pip install shtab" in done.stderr
    (tmp_path / "shtab").symlink_to(distribution("shtab").locate_file("shtab"))
    done = light(*words, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "_restore___model_COMPGEN" in done.stdout and "_quantize___model" in done.stdout


@pytest.mark.slow
def test_an_exported_model_restores(light, repo, tmp_path):
    model = tmp_path / "exported.xml"
    export = ["scripts/export.py", "--model", "mini-w4a4", "--format", "openvino", "-o", model]
    subprocess.run([sys.executable, *map(str, export)], cwd=repo, timeout=300, check=True)
    words = [
        "inference/restore.py",
        "-i",
        PHOTO,
        "-o",
        tmp_path / "out",
        "--model",
        model,
    ]
    done = light(*words, "--offline")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out/restored").iterdir())) == 1
    model.with_suffix(".bin").unlink()
    done = light(*words, "--offline")
    assert done.returncode == 2 and "exported.xml" in done.stderr, done.stderr


def test_the_packages_are_those_of_the_project(repo):
    """Each has the bounds that the full installation has; the headless OpenCV is the same."""
    project = (repo / "pyproject.toml").read_text()
    for line in (repo / "requirements-runtime.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert f'"{line.replace("-headless", "")}"' in project, line
