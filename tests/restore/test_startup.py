"""A compiled restorer starts without the libraries that are slow and large to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quantface_arch import load_model
from quantface_arch.faces.choices import DETECTORS
from quantface_arch.faces.weights import FILES

HEAVY = ("basicsr", "diffusers", "peft", "transformers")
COMMAND = """
import runpy, sys
try:
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("LOADED", *(name for name in {names!r} if name in sys.modules))
"""


@pytest.fixture(scope="module")
def compiled(model):
    """Return a model that is compiled in the cache; compiling builds the network with diffusers."""
    load_model(model, "openvino")
    return model


@pytest.fixture
def weights_dir(data_root):
    """Return a function: a detector's name to the folder of its weights."""

    def find(detector):
        folder = data_root / "weights/facexlib"
        file = FILES.get(detector.replace("auto", "retinaface_mobile0.25"))
        if file is not None and not (folder / file.name).is_file():
            pytest.skip(f"{file.name} is not in {folder}")
        return folder

    return find


def loaded(done):
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert len(lines) == 1, done.stdout
    return lines[0].split()[1:]


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_compiled_restorer_imports_no_heavy_library(
    detector, repo, compiled, photographs, tmp_path, request
):
    options = ["--model", compiled, "--runtime", "openvino", "--detector", detector, "--offline"]
    if detector in FILES or detector == "auto":
        options += ["--weights-dir", request.getfixturevalue("weights_dir")(detector)]
    command = [repo / "inference/restore.py", "-i", photographs, "-o", tmp_path / "out", *options]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(names=(*HEAVY, "openvino")), *map(str, command)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=600,
    )
    # openvino in the list proves that the check detects imports.
    assert loaded(done) == ["openvino"], done.stdout + done.stderr
    assert len(list((tmp_path / "out/restored").iterdir())) == 3
