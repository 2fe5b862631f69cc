"""The detectors and a photograph for them."""

from __future__ import annotations

import pytest

from quantface_arch.faces.detect import build_detector
from quantface_arch.utils.images import load_rgb


@pytest.fixture(params=("yunet", "retinaface_mobile0.25"))
def detector(request, data_root):
    """Every detector whose weights are at hand."""
    return build_detector(request.param, weights_dir=data_root / "weights/facexlib", offline=True)


@pytest.fixture
def astronaut(repo):
    return load_rgb(repo / "inputs/astronaut.jpg")
