"""Training touches branches and bounds alone, and settling them changes no output."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch import quant
from quantface_arch.errors import QuantFaceError

METHOD = {
    "name": "w4a4",
    "eight_bit": ["conv_in"],
    "balance": {"kind": "both"},
    "branch": {"svd": 1, "distill": 2, "budget": 1},
}


def student_of(teacher, **options):
    student = copy.deepcopy(teacher).eval()
    quant.prepare(student, {**METHOD, **options}, quant.CalibrationData(pictures(), progress=False))
    return student


def train(student, teacher, parameters, steps=3):
    optimizer, x = torch.optim.Adam(parameters, lr=1e-2), pictures()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("bounds", [True, False])
def test_only_branches_and_bounds_get_gradients(bounds):
    student = student_of(TinyNet())
    chosen = quant.trainable(student, bounds)
    names = [name for name, value in student.named_parameters() if value.requires_grad]
    assert {name.rpartition(".")[2] for name in names} == (
        {"branch_down", "branch_up", "act_bounds"} if bounds else {"branch_down", "branch_up"}
    )
    assert len(chosen) == len(names) == len({id(value) for value in chosen})
    branched = [layer for layer in quant.quant_layers(student) if layer.rank]
    count = len(list(quant.quant_layers(student)))
    assert len(chosen) == 2 * len(branched) + (count if bounds else 0)
    student(pictures()).square().mean().backward()
    for name, value in student.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
    # Where up is zero its gradient is not: training can begin.
    for layer in branched:
        assert bool(layer.branch_up.grad.abs().sum(0).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_bounds_of_zero_change_nothing(symmetric):
    student, x = student_of(TinyNet(), activations={"symmetric": symmetric}), pictures()
    before = student(x)
    quant.trainable(student, bounds=True)
    assert torch.equal(student(x), before)
    quant.fold_trained(student)
    assert torch.equal(student(x), before)


@pytest.mark.parametrize("symmetric", [True, False])
def test_settling_trained_bounds_changes_no_output_and_leaves_a_valid_grid(symmetric, tmp_path):
    teacher = TinyNet()
    student, x = student_of(teacher, activations={"symmetric": symmetric}), pictures()
    start = student(x).detach()
    losses = train(student, teacher, quant.trainable(student, bounds=True), steps=8)
    assert losses[-1] < losses[0]
    before = student(x).detach()
    assert not torch.equal(before, start)
    assert any(bool(layer.act_bounds.abs().max() > 1e-3) for layer in quant.quant_layers(student))
    quant.fold_trained(student)
    assert torch.equal(student(x), before)
    for layer in quant.quant_layers(student):
        assert layer.act_bounds is None
        assert layer.act_zero_point == layer.act_zero_point.round()
        levels = 2**layer.activation_spec.bits
        assert layer.act_scale > 0 and 0 <= layer.act_zero_point < levels
        assert len(layer.quantize_input(torch.randn(20_000)).unique()) <= levels
    quant.save_checkpoint(student, tmp_path / "model.safetensors", {"type": "TinyNet"})


def test_bounds_move_the_ends_of_the_range():
    model = nn.Sequential(nn.Linear(4, 4))
    plain = {"name": "w8a8", "balance": {"kind": "none"}}
    quant.convert(model, quant.Recipe.from_dict(plain))
    layer = model[0]
    layer.set_activation_range(-1.0, 3.0)
    layer.act_bounds = nn.Parameter(torch.tensor([0.5, 2.0]).log())
    x = torch.linspace(-9, 9, 9001)
    ends = layer.quantize_input(x).detach().aminmax()
    assert float(ends.min) == pytest.approx(-0.5, abs=0.03)
    assert float(ends.max) == pytest.approx(6.0, abs=0.03)
    # A one-sided range stays one: 0 keeps its level.
    layer.set_activation_range(0.0, 3.0)
    assert layer.quantize_input(x).min() == 0


def test_a_checkpoint_before_settling_is_an_error_that_names_the_layer(tmp_path):
    student = student_of(TinyNet())
    quant.trainable(student, bounds=True)
    with pytest.raises(QuantFaceError, match=r"layer conv_in: .*call fold_trained"):
        quant.save_checkpoint(student, tmp_path / "model.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_quantized_or_has_nothing_to_train_is_refused():
    model = TinyNet()
    quant.convert(model, quant.Recipe.from_name("w4a4"))
    with pytest.raises(QuantFaceError, match="layer conv_in: found state calibrating"):
        quant.trainable(model)
    student = student_of(TinyNet(), branch={"svd": 0})
    with pytest.raises(QuantFaceError, match="the model has no branches"):
        quant.trainable(student)
    assert len(quant.trainable(student, bounds=True)) == len(list(quant.quant_layers(student)))


def test_a_teacher_that_shares_parameters_stays_as_it_is():
    teacher = TinyNet().eval()
    # A copy of the modules, not of the parameters.
    memo = {id(value): value for value in teacher.parameters()}
    student, x = copy.deepcopy(teacher, memo), pictures()
    assert student.linear.weight is teacher.linear.weight
    expected = teacher(x).detach()
    values = {name: value.detach().clone() for name, value in teacher.state_dict().items()}
    quant.prepare(student, METHOD, quant.CalibrationData(x, progress=False))
    train(student, teacher, quant.trainable(student, bounds=True))
    assert torch.equal(teacher(x), expected)
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in values.items())
    assert student.norm.weight is teacher.norm.weight
    assert not torch.equal(student(x), expected)


def test_training_leaves_weights_on_their_grid():
    teacher = TinyNet()
    student = student_of(teacher)
    weights = [layer.weight.clone() for layer in quant.quant_layers(student)]
    train(student, teacher, quant.trainable(student, bounds=True))
    for layer, weight in zip(quant.quant_layers(student), weights, strict=True):
        assert torch.equal(layer.weight, weight)
