"""Distillation of a tiny decoder: only it learns, it comes nearer, killed runs resume."""

from __future__ import annotations

import pytest
import torch
from distillation_helpers import batch, build, step
from loops import (
    SMALL,
    load_options,
    saved,
    shrink_training,
    train,
    train_until_killed,
    write_images,
)

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.models import TinyDecoderModel
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import save_checkpoint

FAST = {"num_blocks": [1, 1], "block_out_channels": [16, 16]}
X = torch.rand(2, 3, 32, 32) * 2 - 1


@pytest.fixture
def options(repo, tmp_path):
    """The shipped options, shrunk to 6 steps; the teacher is a small random network."""
    torch.manual_seed(0)
    save_checkpoint(build_arch(SMALL), tmp_path / "teacher.safetensors", SMALL)
    write_images(tmp_path / "faces")
    opt = load_options(repo / "options/train_mini_fast.yml")
    opt.update(num_gpu=0, network_g={**SMALL, "fast_decoder": FAST})
    opt["datasets"]["train"].update(
        dataroot_gt=str(tmp_path / "faces"), gt_size=32, batch_size_per_gpu=2, num_worker_per_gpu=0
    )
    opt["datasets"]["train"].update(dataset_enlarge_ratio=2, persistent_workers=False)
    opt["logger"].update(print_freq=1, save_checkpoint_freq=2)
    opt["train"].update(teacher=str(tmp_path / "teacher.safetensors"), autocast=None)
    opt["train"]["optim_g"]["lr"] = 2e-3
    shrink_training(opt, 6)
    return opt


@torch.no_grad()
def distance(models, teacher, step):
    """Of the pictures after a step to the teacher's."""
    net = build_arch({**SMALL, "fast_decoder": FAST}).eval()
    net.load_state_dict(saved(models, step)["params"])
    return float((net(X) - teacher(X)).abs().mean())


@pytest.mark.slow
def test_the_decoder_alone_learns_and_comes_nearer_to_its_teacher(tmp_path, options, monkeypatch):
    shrink_training(options, 40)
    options["logger"]["save_checkpoint_freq"] = 20
    models = train(monkeypatch, tmp_path, options)
    teacher = load_model(options["train"]["teacher"], "reference")
    found = [distance(models, teacher, step) for step in (20, 40)]
    assert found[1] < found[0]
    given = teacher.state_dict()
    for name, value in saved(models)["params"].items():
        assert name.startswith("fast_decoder.") or torch.equal(value, given[name]), name
    # What restore.py takes is the same network.
    written = load_model(models / "net_g_latest.safetensors", "reference")
    with torch.no_grad():
        assert float((written(X) - teacher(X)).abs().mean()) == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path, options, monkeypatch
):
    whole = train(monkeypatch, tmp_path / "whole", options)
    train_until_killed(monkeypatch, tmp_path / "broken", options, TinyDecoderModel, 4)
    broken = train(monkeypatch, tmp_path / "broken", options, "--auto_resume")
    expected, resumed = saved(whole)["params"], saved(broken)["params"]
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_what_cannot_be_distilled_is_refused_by_name(tmp_path, options, monkeypatch):
    other = {**SMALL, "unet": {**SMALL["unet"], "block_out_channels": [32, 64]}}
    save_checkpoint(build_arch(other), tmp_path / "other.safetensors", other)
    cases = (
        ({"teacher": None}, {}, "train option teacher: missing"),
        ({}, {"fast_decoder": None}, "network_g option fast_decoder: missing"),
        (
            {"teacher": str(tmp_path / "other.safetensors")},
            {},
            r"other.safetensors: its architecture is not network_g's: unet\.",
        ),
    )
    for number, (changes, network, said) in enumerate(cases):
        opt = {**options, "network_g": {**options["network_g"], **network}}
        opt["train"] = {**options["train"], **changes}
        with pytest.raises(QuantFaceError, match=said):
            train(monkeypatch, tmp_path / f"refused{number}", opt)


def test_a_loss_on_clean_images_needs_them(tmp_path, options):
    options["train"]["losses"] = [{"type": "L1Loss", "target": "gt"}]
    model = build(options, tmp_path)
    with pytest.raises(QuantFaceError, match="target gt, but the data set has no gt"):
        step(model, {"lq": batch()["lq"]})
    assert step(model, batch())
