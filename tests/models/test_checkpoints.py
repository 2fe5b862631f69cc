"""Checkpoints of a training: how many are kept, full disks, and resuming with other options."""

from __future__ import annotations

import pytest
import torch
from disks import full_disk
from loops import load_options, saved, shrink_restorer, train, write_images

import quantface_arch.register  # noqa: F401
from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.models import OSDFaceModel, checkpoints
from quantface_arch.models.checkpoints import remove_old_checkpoints, write_checkpoint


@pytest.fixture
def options(repo, tmp_path):
    """The shipped options of the mini, shrunk to 6 steps with a checkpoint after every second."""
    write_images(tmp_path / "faces")
    return shrink_restorer(load_options(repo / "options/train_mini.yml"), tmp_path / "faces")


def steps_of(models):
    """The steps whose states are there, and those whose networks are."""
    states = sorted(int(path.stem) for path in (models.parent / "training_states").glob("*.state"))
    labels = [path.stem.removeprefix("net_g_") for path in models.glob("net_g_*.pth")]
    return states, sorted(int(label) for label in labels if label.isdigit())


def fill_folders(root, steps):
    """Write a state and two networks for each step, in this order."""
    models, states = root / "models", root / "states"
    for step in steps:
        networks = {"net_g": {"params": {}}, "net_d": {"params": {}}}
        write_checkpoint(models, networks, step, states / f"{step}.state", {"iter": step})
    return models, states


@pytest.mark.parametrize(("keep", "wanted"), [(1, [40]), (3, [20, 30, 40]), (0, [10, 20, 30, 40])])
def test_so_many_checkpoints_are_kept_as_the_options_say(tmp_path, keep, wanted):
    models, states = fill_folders(tmp_path, (10, 20, 30, 40))
    (models / "prepared.safetensors").touch()
    write_checkpoint(models, {"net_g": {}}, "latest")
    remove_old_checkpoints(models, states, keep)
    assert sorted(int(path.stem) for path in states.iterdir()) == wanted
    names = {f"net_{label}_{step}.pth" for label in "gd" for step in wanted}
    assert {p.name for p in models.iterdir()} == names | {
        "net_g_latest.pth",
        "prepared.safetensors",
    }


def test_a_run_resumed_from_an_early_state_keeps_what_it_saves(tmp_path):
    models, states = fill_folders(tmp_path, (100, 200, 300, 120))
    remove_old_checkpoints(models, states, 2)
    assert sorted(int(path.stem) for path in states.iterdir()) == [120, 300]


def test_a_state_that_cannot_be_written_leaves_no_networks_of_its_step(tmp_path):
    models, states = fill_folders(tmp_path, (1, 2))
    network, state = {"params": torch.zeros(10)}, {"iter": 3, "big": torch.zeros(100_000)}
    for step, left in ((3, {1, 2}), (2, {1, 2})):
        with full_disk(50_000), pytest.raises(WriteError, match=f"{step}.state: File too large"):
            write_checkpoint(models, {"net_g": network}, step, states / f"{step}.state", state)
        assert {int(path.stem.split("_")[-1]) for path in models.iterdir()} == left
        assert {int(path.stem) for path in states.iterdir()} == left


@pytest.mark.slow
def test_the_last_good_checkpoint_outlives_a_full_disk_and_the_run_resumes_from_it(
    tmp_path, options, monkeypatch
):
    options["logger"]["keep_checkpoints"] = 1
    whole = train(monkeypatch, tmp_path / "whole", options)
    assert steps_of(whole) == ([6], [6])
    save = OSDFaceModel.save

    def on_a_full_disk(self, epoch, current_iter):
        with full_disk(2000 if current_iter == 4 else -1):
            save(self, epoch, current_iter)

    with monkeypatch.context() as patch, pytest.raises(WriteError, match=r"net_g_4\.pth"):
        patch.setattr(OSDFaceModel, "save", on_a_full_disk)
        train(patch, tmp_path / "full", options)
    models = tmp_path / "full/experiments/train_mini/models"
    assert steps_of(models) == ([2], [2])
    resumed = saved(train(monkeypatch, tmp_path / "full", options, "--auto_resume"))
    for key, state in saved(whole).items():
        assert all(torch.equal(value, resumed[key][name]) for name, value in state.items()), key


@pytest.fixture
def stopped(tmp_path, options, monkeypatch):
    """Train for two of six steps, and give a function that resumes with changed options."""

    def killed(self, epoch, current_iter):
        save(self, epoch, current_iter)
        raise KeyboardInterrupt

    save = OSDFaceModel.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OSDFaceModel, "save", killed)
        train(patch, tmp_path, options)
    return lambda: train(monkeypatch, tmp_path, options, "--auto_resume")


@pytest.mark.slow
def test_resuming_says_which_options_differ(options, stopped, monkeypatch):
    warnings = []

    class Logger:
        warning = staticmethod(warnings.append)

    monkeypatch.setattr(checkpoints, "get_root_logger", Logger)
    plain = dict(options["train"])
    for change, message in (
        (lambda opt: opt["train"].pop("discriminator"), "option discriminator: found a training"),
        (
            lambda opt: opt["train"].update(ema_decay=0),
            "option ema_decay: found 0.0, saved was 0.9",
        ),
        (
            lambda opt: opt.update(network_g={**options["network_g"], "timestep": 200}),
            "iteration 2: network_g option timestep: found 200, saved was null",
        ),
    ):
        network = options["network_g"]
        change(options)
        with pytest.raises(QuantFaceError, match=message):
            stopped()
        options.update(network_g=network, train=dict(plain))
    assert not warnings
    options["train"].update(losses=[{"type": "L1Loss", "loss_weight": 0.5}], clip_grad=2.0)
    options["train"]["adversary"] = options["train"].pop("discriminator")
    stopped()
    (said,) = warnings
    assert "clip_grad: found 2.0, saved was 1.0; losses, entry 1: loss_weight: found 0.5" in said
    assert "discriminator" not in said
