"""The table of runtimes: names, the choice, and messages about unavailable ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantface_arch import runtime
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import quantize, save_checkpoint


def build(_):
    return nn.Sequential(nn.Conv2d(3, 4, 3))


def test_auto_is_the_best_available_and_reference_always_is():
    assert "reference" in runtime.available()
    assert runtime.resolve("auto") == runtime.available()[0]
    assert runtime.resolve("reference") == "reference"


def test_an_unknown_runtime_is_named_with_those_that_exist():
    with pytest.raises(QuantFaceError, match=r"found 'tpu', allowed are auto, .*reference"):
        runtime.resolve("tpu")


def test_a_runtime_that_is_not_installed_says_how_to_get_it(monkeypatch):
    hint = "install it with pip install nothing"
    absent = runtime.Runtime(load=build, missing=lambda: hint, devices=("cpu",))
    monkeypatch.setattr(runtime, "RUNTIMES", {"absent": absent, **runtime.RUNTIMES})
    assert "absent" not in runtime.available()
    assert runtime.resolve("auto") in runtime.available()
    with pytest.raises(QuantFaceError, match=r"runtime absent: .*pip install nothing"):
        runtime.resolve("absent")


def test_reference_runs_a_checkpoint_as_it_was_saved(tmp_path):
    model, x = build(None).eval(), torch.rand(2, 3, 8, 8)
    quantize(model, "w4a8", x, progress=False)
    save_checkpoint(model, tmp_path / "m.safetensors", {"type": "any"})
    loaded = runtime.load(tmp_path / "m.safetensors", build, "reference")
    assert torch.equal(loaded(x), model(x))
