"""Fixtures of the tests that compile networks."""

from __future__ import annotations

import pytest
from quant_helpers import TinyNet, pictures
from saved_networks import saved


@pytest.fixture
def net(tmp_path):
    """Return a checkpoint with every layer type, and its builder."""
    x = pictures()
    return saved(tmp_path / "net.safetensors", TinyNet, x, {"type": "any"}), lambda _: TinyNet()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the test a cache of its own; return its folder."""
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/openvino"
