"""OSDFace's files, in tiny sizes."""

from __future__ import annotations

import shutil

import osdface_files as files
import pytest
import torch
from osdface_files import SIZES


@pytest.fixture(autouse=True)
def no_base_from_outside(monkeypatch):
    monkeypatch.delenv("QUANTFACE_SD_BASE", raising=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a folder of all files, which tests must not change, and their tensors."""
    folder = tmp_path_factory.mktemp("osdface")
    torch.manual_seed(0)
    return folder, files.write_osdface(folder, SIZES)


@pytest.fixture
def folder(written, tmp_path):
    """Copy the files, so that a test may damage them."""
    return shutil.copytree(written[0], tmp_path / "osdface")
