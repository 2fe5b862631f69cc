"""Threads that share a compiled network get the results of their own inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from quant_helpers import pictures

from quantface_arch.runtime.openvino import load

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.slow
@pytest.mark.parametrize("frugal", [False, True])
def test_eight_threads_share_a_compiled_network(net, frugal, monkeypatch):
    # A large network releases its memory after each run.
    monkeypatch.setattr(
        "quantface_arch.runtime.openvino.compiled_parts.LARGE", 0 if frugal else 2**28
    )
    model = load(*net)
    inputs = [pictures(1, side) + shift for side in (32, 48, 80) for shift in (0.0, 0.3)]
    wanted = [model(x) for x in inputs]
    assert not torch.equal(wanted[4], wanted[5])
    turns = list(range(len(inputs))) * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda turn: model(inputs[turn]), turns))
    for turn, result in zip(turns, found, strict=True):
        assert torch.equal(result, wanted[turn])
