"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from quantface_arch.utils.cli import run
from quantface_arch.utils.images import load_rgb, resize

pytest_plugins = ["command_fixtures"]  # in helpers/

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same random numbers in every run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory) -> None:
    """What a run of the tests compiles is kept for the run, in all its processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["QUANTFACE_CACHE"] = str(shared / "cache")


def pytest_collection_modifyitems(items) -> None:
    """Begin with the files that take longest, so that processes of a run end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Faces, photographs and detector weights that are not part of the repository."""
    root = Path(os.environ.get("QUANTFACE_DATA", REPO.parent / "shared"))
    if not root.is_dir():
        pytest.skip(f"no test data at {root}: set QUANTFACE_DATA to the folder that holds faces/")
    return root.resolve()


@pytest.fixture(scope="session")
def mobileface(data_root) -> Path:
    """Return the weights of the network that embeds faces; the test is skipped without them."""
    path = data_root / "weights/identity/MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="session")
def bench_env() -> dict[str, str]:
    """Environment of a benchmark, which uses the shipped faces where the test data are absent."""
    root = Path(os.environ.get("QUANTFACE_DATA", REPO.parent / "shared"))
    return {**os.environ, "QUANTFACE_DATA": str(root.absolute())}


@pytest.fixture(scope="session")
def shipped_faces() -> list[Path]:
    """Clean 256×256 faces that are part of the repository."""
    return sorted((REPO / "quantface_arch/data/faces/val").glob("*.jpg"))


@pytest.fixture(scope="session")
def aligned_face(shipped_faces) -> np.ndarray:
    """A clean face, (512, 512, 3) uint8 RGB."""
    return resize(load_rgb(shipped_faces[0]), 512, 512)


@pytest.fixture
def load_script(repo, monkeypatch):
    """Load the module of a command, or scripts/NAME.py as a module of its own."""

    def load(name):
        if (repo / f"quantface_arch/commands/{name}.py").is_file():
            return importlib.import_module(f"quantface_arch.commands.{name}")
        monkeypatch.syspath_prepend(str(repo / "scripts"))
        spec = importlib.util.spec_from_file_location(name, repo / f"scripts/{name}.py")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up.
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a loaded script in this process: (exit status, stdout, stderr)."""

    def call(script, *words):
        name = script.__name__.rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            run(script.main, script.make_parser())
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call
