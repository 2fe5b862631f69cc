"""Degradations are BasicSR's."""

from __future__ import annotations

import numpy as np
import pytest

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.data.degradations import add_jpg_compression
from quantface_arch.data.degradation import jpeg


@pytest.mark.parametrize("quality", [1, 40, 95])
def test_jpeg_is_basicsrs_without_its_warning(quality, capfd):
    image = np.random.rand(32, 40, 3).astype(np.float32) * 1.2 - 0.1
    found = jpeg(image, quality)
    assert not capfd.readouterr().err
    assert np.array_equal(found, add_jpg_compression(image, quality))
