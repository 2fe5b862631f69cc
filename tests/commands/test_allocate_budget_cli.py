"""scripts/allocate_bits.py with budgets of size and time, up to the checkpoint."""

from __future__ import annotations

import copy
import json

import cv2
import pytest
import torch
import yaml
from allocation_files import OPTIONS, changed, enter
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import Recipe, quant_layers, quantize, save_checkpoint
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map
from quantface_arch.utils.disk_cache import cache_root

RECIPE = {
    "name": "w4a4",
    "branch": {"svd": 2, "distill": 1, "budget": 0.3},
    "balance": {"kind": "auto", "alpha": 0.5},
}
CHOICES = {
    "weight_bits": [4, 8],
    "activations": [4, 8],
    "ranks": [0, 2],
    "balances": ["none", "both"],
    "protect": {},
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    return enter(tmp_path, monkeypatch)


@pytest.fixture
def command(load_script, work, run_script):
    """Run the command with a budget: (exit status, stdout, stderr)."""

    def run(budget, *words, **choices):
        options = copy.deepcopy(changed(**{**CHOICES, **choices}, budget=budget))
        options["quant"] = {**OPTIONS["quant"], **RECIPE}
        (work / "options.yml").write_text(yaml.safe_dump(options))
        script = load_script("allocate_bits")
        return run_script(script, "-opt", "options.yml", "--out", "map.yml", *words)

    return run


def quantized(path):
    """Quantize the network by the map; return its layers' choices and the file."""
    choices = load_bit_map("map.yml")
    model = build_arch(RRDB).eval()
    recipe = Recipe.from_dict(RECIPE).with_choices(choices)
    images = torch.rand(1, 3, 32, 32)
    quantize(model, recipe, images, progress=False, bits=bits_of(choices))
    save_checkpoint(model, path, RRDB)
    layers = {
        x.name: (x.weight_spec.bits, x.activation_spec.bits, x.rank, x.balance.kind)
        for x in quant_layers(model)
    }
    wanted = {
        name: (*choice.bits, choice.rank or 0, choice.balance) for name, choice in choices.items()
    }
    return layers, wanted


@pytest.mark.slow
def test_the_checkpoint_has_the_size_and_every_layer_what_the_map_says(command, work):
    status, out, err = command({"megabytes": 0.06}, "--pareto", "sizes.png")
    assert status == 0, err
    assert "ranks: " in out and "balancing: " in out
    layers, wanted = quantized(work / "q.safetensors")
    assert layers == wanted
    assert len(set(wanted.values())) > 3
    size = (work / "q.safetensors").stat().st_size
    promised = int(out.split("about ")[1].split(" bytes")[0].replace(",", ""))
    assert promised == pytest.approx(size, rel=0.01)
    assert 0.95 * 60_000 < size <= 60_000
    plot = cv2.imread("sizes.png")
    assert plot is not None and plot.std() > 5
    # Another budget needs neither the network nor its faces, and an impossible one names the ends.
    (work / "float.safetensors").unlink()
    known = ("--sensitivities", "map.sensitivities.json")
    assert command({"megabytes": 0.05}, *known)[0] == 0
    status, _, err = command({"megabytes": 0.001}, *known)
    assert status == 1 and "budget megabytes: found 0.001, the smallest feasible one is 0.0" in err


@pytest.mark.slow
def test_a_budget_of_time_is_measured_once_and_checked(command, work):
    pytest.importorskip("openvino")
    choices = {"weight_bits": [4], "activations": [4, 6]}
    budget = {"milliseconds": 1e5, "runtime": "openvino", "device": "cpu"}
    status, out, err = command(budget, "--pareto", "times.png", **choices)
    assert status == 0, err
    assert "milliseconds, measured" in out and cv2.imread("times.png") is not None
    best = (work / "map.yml").read_text()
    kept = {path: path.read_text() for path in (cache_root() / "timings").rglob("manifest.json")}
    assert kept and all(json.loads(text)["kept"]["milliseconds"] > 0 for text in kept.values())
    # The time of the whole network is measured again, but not those of its layers.
    known = ("--sensitivities", "map.sensitivities.json")
    assert command(budget, *known, **choices)[0] == 0
    again = {path: path.read_text() for path in (cache_root() / "timings").rglob("manifest.json")}
    assert again == kept and (work / "map.yml").read_text() == best


def test_a_pareto_plot_needs_a_budget_that_it_can_vary(command, work):
    status, _, err = command({"activation_bits": 5}, "--pareto", "p.png", ranks=None, balances=None)
    assert status == 1 and "Pareto plot needs a budget of megabytes or milliseconds" in err
    assert "the plot ends in .png" in command({"megabytes": 1}, "--pareto", "p.txt")[2]
