"""Trained weights: they begin where rounding ended, learn, and end on their grid unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    fold_trained,
    load_checkpoint,
    prepare,
    quant_layers,
    save_checkpoint,
    trainable,
)
from quantface_arch.quant.finetune.reconstruct import reconstruct
from quantface_arch.quant.finetune.weight_trainers import WARM_UP, WEIGHT_TRAINERS
from quantface_arch.quant.ops.quantizer import fake_quantize, grid

METHOD = {
    "name": "w4a4",
    "weights": {"range": "minmax"},
    "balance": {"kind": "scale", "alpha": 0.5},
    "branch": {"svd": 1, "budget": 1},
}


@pytest.fixture
def teacher():
    return TinyNet().eval()


def student_of(teacher, **options):
    student = copy.deepcopy(teacher)
    prepare(student, {**METHOD, **options}, CalibrationData(pictures(12), progress=False))
    return student


def train(student, teacher, parameters, steps=40, lr=2e-3):
    optimizer, x = torch.optim.Adam(parameters, lr), pictures(12)
    wanted = teacher(x).detach()
    for step in range(steps):
        optimizer.zero_grad()
        loss = (student(x) - wanted).square().mean()
        tuners = [layer.tuner for layer in quant_layers(student)]
        (loss + sum(tuner.penalty(step / steps) for tuner in tuners)).backward()
        optimizer.step()
    return x, wanted


def error(student, x, wanted):
    with torch.no_grad():
        return float((student(x) - wanted).square().mean())


@pytest.mark.parametrize("kind", WEIGHT_TRAINERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_training_begins_at_the_rounded_layer(kind, symmetric, teacher):
    weights = {"symmetric": symmetric, "range": "minmax"}
    student, x = student_of(teacher, weights=weights), pictures()
    with torch.no_grad():
        before = student(x)
        trainable(student, weights=kind, teacher=teacher)
        torch.testing.assert_close(student(x), before, atol=2e-5, rtol=1e-4)
        fold_trained(student)
        torch.testing.assert_close(student(x), before, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WEIGHT_TRAINERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_learns_and_what_was_learned_stays_in_the_file(kind, symmetric, teacher, tmp_path):
    weights = {"symmetric": symmetric, "range": "minmax"}
    student = student_of(teacher, weights=weights, branch={"svd": 0})
    untrained = copy.deepcopy(student)
    parameters = trainable(student, bounds=True, weights=kind, teacher=teacher)
    rate = {"rounding": 5e-2, "merged": 1e-3, "scale": 1e-2}[kind]
    x, wanted = train(student, teacher, parameters, 120, rate)
    assert error(student, x, wanted) < 0.98 * error(untrained, x, wanted)
    with torch.no_grad():
        before = student(x)
    fold_trained(student)
    with torch.no_grad():
        moved = (student(x) - before).abs() > 1e-4
    # Inputs on the border between two levels may fall to the other side.
    assert float(moved.float().mean()) < 0.01
    for layer in quant_layers(student):
        assert layer.tuner is None and layer.act_bounds is None
        steps = layer.per_weight(layer.weight_scale), layer.per_weight(layer.weight_zero_point)
        limits = grid(layer.weight_spec.bits, symmetric)
        assert torch.equal(fake_quantize(layer.weight, *steps, *limits), layer.weight)
    save_checkpoint(student, tmp_path / "model.safetensors", {}, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "model.safetensors", lambda _: TinyNet())
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))


def test_a_checkpoint_in_the_middle_is_refused(teacher, tmp_path):
    student = student_of(teacher)
    trainable(student, weights="merged", teacher=teacher)
    with pytest.raises(QuantFaceError, match=r"layer conv_in: .*call fold_trained"):
        save_checkpoint(student, tmp_path / "model.safetensors", {})


@pytest.mark.parametrize("kind", WEIGHT_TRAINERS)
def test_a_training_state_comes_back(kind, teacher):
    student = student_of(teacher)
    other = copy.deepcopy(student)
    parameters = trainable(student, bounds=True, weights=kind, teacher=teacher)
    x, _ = train(student, teacher, parameters, steps=3, lr=1e-2)
    trainable(other, bounds=True, weights=kind, teacher=teacher)
    other.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), student(x))


def test_rounding_moves_no_weight_by_more_than_one_level(teacher):
    student = student_of(teacher, branch={"svd": 0}, balance={"kind": "none"})
    parameters = trainable(student, weights="rounding", teacher=teacher)
    train(student, teacher, parameters, lr=5e-2)
    fold_trained(student)
    moved = 0
    for layer in quant_layers(student):
        original = teacher.get_submodule(layer.name).weight.detach()
        steps = (layer.weight - original).abs() / layer.per_weight(layer.weight_scale)
        assert float(steps.max()) < 1 + 1e-4
        moved += int((steps > 0.5 + 1e-4).sum())
    assert moved > 10


def test_the_penalty_of_rounding_ends_indecision(teacher):
    student = student_of(teacher)
    trainable(student, weights="rounding", teacher=teacher)
    tuner = next(quant_layers(student)).tuner
    assert tuner.penalty(WARM_UP / 2) == 0
    loose, tight = (float(tuner.penalty(progress).detach()) for progress in (0.3, 1.0))
    with torch.no_grad():
        tuner.logit.copy_(torch.where(tuner.logit >= 0, 9.0, -9.0))
    # Sharper at first it forgives all but the half-way ones; decided weights cost nothing.
    assert loose > tight > 0 and float(tuner.penalty(1.0).detach()) < 1e-6


def test_blocks_learn_their_rounding(teacher):
    student = student_of(teacher, branch={"svd": 0})
    x = pictures(12)
    start = error(student, x, teacher(x).detach())
    errors = reconstruct(
        student, teacher, x, ["*"], 60, 2e-2, bounds="step", weights="rounding", progress=False
    )
    assert set(errors) == {layer.name for layer in quant_layers(student)}
    assert all(after <= before for before, after in errors.values())
    assert sum(after < before for before, after in errors.values()) >= 3
    assert error(student, x, teacher(x).detach()) < start


def test_a_step_alone_keeps_the_zero_point(teacher):
    student = student_of(teacher)
    zeros = [layer.act_zero_point.clone() for layer in quant_layers(student)]
    trainable(student, bounds="step")
    for layer in quant_layers(student):
        layer.act_bounds.data.fill_(0.3)
        scale, _ = layer.input_grid()
        torch.testing.assert_close(scale, layer.act_scale * torch.tensor(0.3).exp())
    fold_trained(student)
    found = [layer.act_zero_point for layer in quant_layers(student)]
    assert found == zeros


def test_what_cannot_be_trained_is_refused(teacher):
    with pytest.raises(QuantFaceError, match="weights: found 'all', allowed are rounding, merged"):
        trainable(student_of(teacher), weights="all", teacher=teacher)
    with pytest.raises(QuantFaceError, match="bounds: found 'zero', allowed are false, true and"):
        trainable(student_of(teacher), bounds="zero")
    rotated = student_of(teacher, balance={"kind": "rotate"})
    with pytest.raises(QuantFaceError, match=r"layer .*: found balance rotate, a learned scale"):
        trainable(rotated, weights="scale", teacher=teacher)
    grouped = student_of(teacher, weights={"granularity": "group", "group": 8})
    with pytest.raises(QuantFaceError, match="found weights of granularity group, a learned scale"):
        trainable(grouped, weights="scale", teacher=teacher)
