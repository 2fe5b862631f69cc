"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same random numbers in every run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


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
