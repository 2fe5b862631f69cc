"""The recipes of other methods: each runs, as the method that it says it is, on equal terms."""

from __future__ import annotations

import pytest
import torch
from loops import load_options, shrink_data, shrink_training, train, write_images

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.quant import load_checkpoint, quant_layers, read_metadata, save_checkpoint

PEERS = (
    "convrot",
    "efficientdm",
    "loraq",
    "maxmin",
    "mixdq",
    "passionsr",
    "q_diffusion",
    "quarot",
    "sdnq",
    "smoothquant",
    "svdquant",
    "svdquant_gptq",
)
TRAINED = ("efficientdm", "passionsr")


def read(repo, name):
    return load_options(repo / f"options/peers/{name}.yml")


def shrink(opt, faces):
    """A run of seconds that keeps the method."""
    shrink_data(opt, faces)
    # Of a network as narrow as this even small ranks are a large share.
    opt["quant"]["branch"]["budget"] = 1.0
    if "iterations" in opt["quant"]["branch"]:
        opt["quant"]["branch"]["iterations"] = 2
    if "alpha" in opt["quant"]["balance"]:
        opt["quant"]["balance"]["alpha"] = [0.3, 0.6]
    if opt["train"]["total_iter"]:
        shrink_training(opt)
    if "reconstruction" in opt["train"]:
        opt["train"]["reconstruction"].update(steps=1, num_images=1, size=64)
    return opt


def test_every_peer_has_its_recipe(repo):
    found = sorted(path.stem for path in (repo / "options/peers").glob("*.yml"))
    assert found == list(PEERS)


@pytest.mark.parametrize("name", PEERS)
def test_a_recipe_has_ours_data_calibration_and_no_less_training(repo, name):
    opt, ours = read(repo, name), load_options(repo / "options/quantface_w4.yml")
    assert opt["datasets"] == ours["datasets"] and opt["network_g"] == ours["network_g"]
    calibration = {"dataroot_lq": None, **opt["quant"]["calibration"]}
    assert calibration == ours["quant"]["calibration"]
    assert opt["train"]["total_iter"] in (0, ours["train"]["total_iter"])
    assert bool(opt["train"]["total_iter"]) == (name in TRAINED)
    if name in TRAINED:
        for part in ("losses", "scheduler", "warmup_iter", "autocast"):
            assert opt["train"][part] == ours["train"][part]
    recipe, *_ = read_quant_options(opt["quant"], torch.nn.Module())
    assert recipe.weights.granularity == "channel" and recipe.activations.granularity == "tensor"
    assert not recipe.activations.symmetric
    assert "granularity" in (repo / f"options/peers/{name}.yml").read_text() or name not in (
        "convrot",
        "quarot",
        "sdnq",
        "smoothquant",
        "svdquant",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_shrunken_run_gives_a_checkpoint_of_the_method(repo, tmp_path, monkeypatch, name):
    write_images(tmp_path / "faces")
    models = train(monkeypatch, tmp_path, shrink(read(repo, name), tmp_path / "faces"))
    path = models / "net_g_latest.safetensors"
    metadata = read_metadata(path)
    model = load_checkpoint(path, build_arch)
    kinds = {layer.balance.kind for layer in quant_layers(model)}
    wanted = {
        "convrot": {"none", "rotate"},
        "quarot": {"none", "rotate"},
        "sdnq": {"none", "rotate"},
        "smoothquant": {"none", "scale"},
        "passionsr": {"scale"},
        "svdquant": {"none", "scale"},
        "svdquant_gptq": {"none", "scale"},
    }
    assert kinds == wanted.get(name, {"none"})
    branched = ("loraq", "sdnq", "svdquant", "svdquant_gptq")
    assert bool(metadata["ranks"]) == (name in branched)
    assert {layer.branch_bits for layer in quant_layers(model)} == {8 if name == "loraq" else 16}
    regular = {layer.balance.regular for layer in quant_layers(model) if layer.balance.segments}
    assert regular == {"convrot": {True}, "sdnq": {True}, "quarot": {False}}.get(name, set())
    apart = [layer.act_zero_point.ndim > 0 for layer in quant_layers(model)]
    assert any(apart) == (name == "passionsr")
    rounded_by_gptq = name in ("quarot", "svdquant_gptq")
    assert (metadata["recipe"]["weights"]["rounding"] == "gptq") == rounded_by_gptq
    # The layers that the recipe quantizes have its bit widths.
    widths = {(layer.weight_spec.bits, layer.activation_spec.bits) for layer in quant_layers(model)}
    assert widths == {(4, 4), (8, 8)}
    # A loaded checkpoint is written again byte by byte.
    again = tmp_path / "again.safetensors"
    save_checkpoint(model, again, metadata["arch"], metadata["extra"])
    assert again.read_bytes() == path.read_bytes()
    assert bool(torch.isfinite(model(torch.rand(1, 3, 32, 32) * 2 - 1)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": "rounding"},
            "train option train_weights: found 'rounding', allowed are null, mer",
        ),
        ({"bounds": "zero"}, "train option bounds: found 'zero', allowed are False, True, step"),
        (
            {"reconstruction": {"blocks": ["*"], "steps": 1, "lr": 0.1, "weights": "all"}},
            "train option reconstruction: train_weights: found 'all'",
        ),
    ],
)
def test_wrong_training_options_are_refused_before_calibration(
    repo, tmp_path, monkeypatch, options, message
):
    write_images(tmp_path / "faces")
    opt = shrink(read(repo, "maxmin"), tmp_path / "faces")
    opt["train"].update(options)
    with pytest.raises(QuantFaceError, match=message):
        train(monkeypatch, tmp_path, opt)
    assert not list(tmp_path.rglob("*.safetensors"))
