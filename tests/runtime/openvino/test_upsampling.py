"""Convolutions of a doubled image, computed on the small one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_graph import compiled_graph, kinds
from torch import nn

from quantface_arch.runtime.openvino import upsampling
from quantface_arch.runtime.openvino.compiled import integer_products
from quantface_arch.runtime.openvino.upsampling import transposed_taps


class Doubling(nn.Module):
    """Two convolutions, the second one of a doubled image."""

    def __init__(self, **options):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, **{"padding": 1, **options})

    def forward(self, x):
        return self.second(F.interpolate(self.first(x), scale_factor=2.0, mode="nearest"))


class Tripling(Doubling):
    def forward(self, x):
        return self.second(F.interpolate(self.first(x), scale_factor=3.0, mode="nearest"))


class Smoothing(Doubling):
    def forward(self, x):
        return self.second(F.interpolate(self.first(x), scale_factor=2.0, mode="bilinear"))


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Return a function that returns the SQNR to the reference and the graph's layer types."""

    def run(build, mode="folded", wide=16):
        monkeypatch.setattr(upsampling, "WIDE", wide)
        torch.manual_seed(3)
        folder = tmp_path / f"wide-{wide}"
        folder.mkdir()
        distance, graph = compiled_graph(build, torch.rand(2, 3, 9, 12), mode, folder)
        assert set(integer_products(graph).values()) <= {"u8", "i8"}
        return distance, kinds(graph)

    return run


def test_taps_of_the_transposed_convolution_give_the_same():
    weight, x = torch.randn(5, 4, 3, 3, dtype=torch.double), torch.randn(2, 4, 6, 7).double()
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    taps = torch.from_numpy(transposed_taps(weight.numpy()))
    assert torch.allclose(F.conv_transpose2d(x, taps, stride=2, padding=1), wanted)


def test_sums_of_taps_are_exact_where_they_are_integers():
    weight = np.full((1, 1, 3, 3), 127, np.int32)
    taps = transposed_taps(weight)
    assert taps.max() == 4 * 127 and taps.sum() == 4 * weight.sum()


@pytest.mark.slow
def test_a_folded_network_is_merged_and_follows_the_reference(compiled):
    distance, kinds = compiled(Doubling)
    assert kinds.count("Deconvolution") == 1 and "Interpolate" not in kinds
    plain, kinds = compiled(Doubling, wide=17)
    assert "Deconvolution" not in kinds and "Interpolate" in kinds
    # The input is rounded twice.
    assert plain > 38 and 35 < distance < plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "mode"),
    [
        (Doubling, "faithful"),
        (Tripling, "folded"),
        (Smoothing, "folded"),
        (lambda: Doubling(stride=2), "folded"),
        (lambda: Doubling(padding=0), "folded"),
        (lambda: Doubling(groups=2), "folded"),
        (lambda: Doubling(dilation=2), "folded"),
    ],
)
def test_what_is_no_plain_doubling_is_left_alone(compiled, build, mode):
    distance, kinds = compiled(build, mode)
    assert "Deconvolution" not in kinds and distance > 30
