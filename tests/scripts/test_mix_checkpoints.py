"""Averaging two checkpoints."""

from __future__ import annotations

import pytest
import torch
from programs import run_program
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import Recipe, quantize, save_checkpoint


@pytest.fixture
def mix(repo, tmp_path):
    """Run the command on two restorers; returns it and their paths."""
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_checkpoint(build_arch(TINY), path, TINY)

    def run(first, second, share):
        command = [repo / "scripts/mix_checkpoints.py", first, second, "--share", share]
        return run_program(*command, "-o", tmp_path / "c.safetensors")

    return run, paths


@pytest.mark.slow
def test_weights_lie_between_those_of_the_two(mix, tmp_path):
    run, paths = mix
    assert run(*paths, 0.25).returncode == 0
    loaded = (load_model(path).state_dict() for path in (*paths, tmp_path / "c.safetensors"))
    first, second, mixed = loaded
    for name, value in mixed.items():
        wanted = 0.75 * first[name] + 0.25 * second[name]
        assert torch.allclose(value, wanted, rtol=1e-2, atol=1e-4), name


@pytest.mark.slow
def test_a_quantized_checkpoint_is_refused(mix, tmp_path):
    run, paths = mix
    model = build_arch(TINY)
    recipe = Recipe.from_dict({"name": "w8a8", "balance": {"kind": "none"}})
    quantize(model, recipe, torch.rand(1, 3, 64, 64), progress=False)
    save_checkpoint(model, tmp_path / "q.safetensors", TINY)
    done = run(paths[0], tmp_path / "q.safetensors", 0.5)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "quantized" in done.stderr
