"""Trainings that fail before their first step: they say why, and leave no folder behind."""

from __future__ import annotations

import urllib.request
from urllib.error import URLError

import pytest
from distillation_helpers import batch, build, step
from loops import load_options, shrink_restorer, train, write_images
from small_networks import RRDB

import quantface_arch.register  # noqa: F401
from quantface_arch.errors import QuantFaceError
from quantface_arch.models import OSDFaceModel


@pytest.fixture
def options(repo, tmp_path):
    """The shipped options of the mini, shrunk to 2 steps."""
    write_images(tmp_path / "faces")
    return shrink_restorer(load_options(repo / "options/train_mini.yml"), tmp_path / "faces", 2)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_training_that_cannot_start_puts_everything_back(tmp_path, options, monkeypatch):
    root = tmp_path / "runs"
    wrong = {**options, "train": {**options["train"], "losses": []}}
    with pytest.raises(QuantFaceError, match="losses: empty"):
        train(monkeypatch, root, wrong)
    assert contents(root) == ["options.yml"]
    train(monkeypatch, root, options)
    before = contents(root)
    with pytest.raises(QuantFaceError, match="losses: empty"):
        train(monkeypatch, root, wrong)
    assert contents(root) == before


def test_a_training_that_fails_in_its_first_step_leaves_nothing(tmp_path, options, monkeypatch):
    def fail(self, iteration):
        raise QuantFaceError("the first batch cannot be read")

    monkeypatch.setattr(OSDFaceModel, "optimize_parameters", fail)
    with pytest.raises(QuantFaceError, match="first batch"):
        train(monkeypatch, tmp_path / "runs", options)
    assert contents(tmp_path / "runs") == ["options.yml"]


def test_a_training_that_fails_after_a_step_keeps_its_log(tmp_path, options, monkeypatch):
    step = OSDFaceModel.optimize_parameters

    def fail(self, iteration):
        if iteration == 2:
            raise QuantFaceError("loss is nan")
        step(self, iteration)

    monkeypatch.setattr(OSDFaceModel, "optimize_parameters", fail)
    with pytest.raises(QuantFaceError, match="nan"):
        train(monkeypatch, tmp_path / "runs", options)
    assert (tmp_path / "runs/experiments/train_mini/models").is_dir()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            {"type": "QuantFaceLPIPSLoss", "net": "squeeze", "weights": "no/such.pth"},
            [
                "entry 2 (QuantFaceLPIPSLoss)",
                "no file no/such.pth",
                "get https://",
                "weights: FILE",
            ],
        ),
        (
            {"type": "QuantFaceIdentityLoss", "net": "mobileface", "weights": "no/such.onnx"},
            ["entry 2 (QuantFaceIdentityLoss)", "get https://", "QuantFaceFeatureLoss"],
        ),
        (
            {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}},
            ["entry 2 (PerceptualLoss)", "could not be loaded", "offline", "QuantFaceFeatureLoss"],
        ),
    ],
)
def test_missing_weights_name_the_loss_and_the_way_out(tmp_path, options, monkeypatch, loss, words):
    def offline(*args, **kwargs):
        raise URLError("offline")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    options["train"]["losses"].append(loss)
    with pytest.raises(QuantFaceError) as error:
        train(monkeypatch, tmp_path / "runs", options)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs/experiments").exists()


def test_a_training_from_scratch_needs_clean_images(tmp_path, options):
    model = build(options, tmp_path)
    with pytest.raises(QuantFaceError, match="the data set has no gt"):
        step(model, {"lq": batch()["lq"]})


def test_a_network_without_a_latent_is_refused_before_the_first_step(tmp_path, options):
    options["network_g"] = RRDB
    with pytest.raises(QuantFaceError, match="network_g: RRDBNet has no latent"):
        build(options, tmp_path)


def test_a_distillation_needs_a_loss_at_every_step(tmp_path, w4_options, monkeypatch):
    w4_options["train"]["losses"] = [{"type": "L1Loss", "every": 2}]
    with pytest.raises(QuantFaceError, match="no loss counts at some iterations"):
        train(monkeypatch, tmp_path / "runs", w4_options)
