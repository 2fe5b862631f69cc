"""Fixtures that several of these tests share."""

from __future__ import annotations

import pytest
from loops import load_options, shrink, write_pictures


@pytest.fixture
def w4_options(repo, tmp_path):
    """The shipped W4A4 options, shrunk, with moving averages and accumulated gradients."""
    write_pictures(tmp_path / "faces")
    opt = shrink(load_options(repo / "options/quantface_w4.yml"), tmp_path / "faces", steps=6)
    opt["train"].update(ema_decay=0.5, accumulate=2)
    return opt
