"""Block-wise reconstruction: better, never worse, and nothing but the block is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, prepare, quant_layers
from quantface_arch.quant.finetune import block_calls
from quantface_arch.quant.finetune.reconstruct import reconstruct

RECIPE = {"name": "w3a4", "branch": {"svd": 2, "distill": 2, "budget": 1}}


class Block(nn.Module):
    """Takes and returns tuples, and a keyword that may be a tuple, as diffusers' blocks do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, pair, skip=None):
        x, index = pair
        h = x + self.second(nn.functional.silu(self.first(x)))
        return (h if skip is None else h + skip["x"][0], index), [x]


class Net(nn.Module):
    """Convolutions around two blocks, which are registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.late = Block(16)
        self.early = Block(16)
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.conv_out = nn.Conv2d(16, 3, 3, padding=1)
        self.unused = nn.Linear(16, 16)

    def forward(self, x):
        h = self.conv_in(x)
        pair, _ = self.early((h, torch.tensor(3)))
        pair, _ = self.late(pair, skip={"x": (h,)})
        return self.conv_out(pair[0])


@pytest.fixture
def pair():
    teacher = Net().eval()
    student = copy.deepcopy(teacher)
    prepare(student, {**RECIPE, "exclude": ["unused"]}, CalibrationData(images(), progress=False))
    return student, teacher


def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1


def tuned(pair, blocks=("early", "late"), steps=20, lr=1e-2, **options):
    return reconstruct(*pair, images(), blocks, steps, lr, 3, progress=False, **options)


def branches(model):
    return {
        f"{layer.name}.{side}": getattr(layer, side).detach().clone()
        for layer in quant_layers(model)
        if layer.rank
        for side in ("branch_down", "branch_up")
    }


@pytest.mark.slow
def test_every_block_comes_nearer_in_the_order_of_execution(pair):
    errors = tuned(pair)
    assert list(errors) == ["early", "late"]
    assert all(after < 0.9 * before for before, after in errors.values())


@pytest.mark.slow
def test_the_reported_error_is_the_blocks_own(pair):
    student, teacher = pair
    (_, after) = tuned(pair, ["early"])["early"]
    with torch.no_grad():
        (found, _), [kept] = student.early((student.conv_in(images()), 0))
        (wanted, _), [given] = teacher.early((teacher.conv_in(images()), 0))
        squares = torch.cat([(found - wanted).square(), (kept - given).square()])
    assert after == pytest.approx(float(squares.mean()), rel=1e-4)


def test_other_blocks_and_everything_but_the_branches_stay(pair):
    student, _ = pair
    before = {name: value.clone() for name, value in student.state_dict().items()}
    tuned(pair, ["early"])
    changed = {
        name for name, value in student.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed and all(name.startswith("early.") and "branch_" in name for name in changed)
    assert not any(value.requires_grad for value in student.early.parameters())
    assert all(value.grad is None for value in student.parameters())


@pytest.mark.slow
def test_bounds_train_too_if_asked(pair):
    student, _ = pair
    before = {layer.name: float(layer.act_scale) for layer in quant_layers(student)}
    tuned(pair, bounds=True)
    after = {layer.name: float(layer.act_scale) for layer in quant_layers(student)}
    assert {name for name in after if after[name] != before[name]} == {
        f"{block}.{layer}" for block in ("early", "late") for layer in ("first", "second")
    }


@pytest.mark.slow
def test_bounds_help_where_the_range_was_not_searched():
    teacher = Net().eval()
    student = copy.deepcopy(teacher)
    options = {**RECIPE, "name": "w8a3", "activations": {"range": "minmax"}, "exclude": ["unused"]}
    prepare(student, options, CalibrationData(images(), progress=False))
    _, without = tuned((copy.deepcopy(student), teacher), steps=60)["early"]
    _, found = tuned((student, teacher), steps=60, bounds=True)["early"]
    assert found < 0.98 * without


@pytest.mark.slow
def test_no_block_becomes_worse_even_at_an_absurd_learning_rate(pair):
    student, _ = pair
    before = branches(student)
    errors = tuned(pair, steps=3, lr=1e3)
    assert all(after == least for after, least in errors.values())
    assert all(torch.equal(value, before[name]) for name, value in branches(student).items())


def test_globs_take_the_outermost_match(pair):
    assert list(tuned(pair, ["*"], steps=1)) == ["conv_in", "early", "late"]
    assert list(tuned(pair, ["*.first", "late"], steps=1)) == ["early.first", "late"]


def test_modes_are_put_back(pair):
    student, teacher = pair
    student.train()
    student.late.eval()
    tuned(pair, steps=1)
    assert student.training and not student.late.training and not teacher.training


@pytest.mark.slow
def test_large_blocks_are_kept_at_16_bits(pair, monkeypatch):
    exact = tuned((copy.deepcopy(pair[0]), pair[1]), ["early"])["early"]
    monkeypatch.setattr(block_calls, "LARGE_BYTES", 0)
    rounded = tuned(pair, ["early"])["early"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["nothing", "unused"])
def test_a_glob_that_matches_nothing_that_runs_is_an_error(pair, pattern):
    with pytest.raises(QuantFaceError, match=f"block '{pattern}' matches no module that runs"):
        tuned(pair, ["early", pattern])


def test_values_that_are_not_finite_name_the_block(pair):
    pair[1].late.second.bias.data[0] = torch.nan
    with pytest.raises(QuantFaceError, match=r"block late: .* not finite"):
        tuned(pair, steps=1)


def test_training_that_diverges_names_the_block_and_leaves_it_as_it_was(pair):
    student, _ = pair
    before = branches(student)
    with pytest.raises(QuantFaceError, match=r"block early: .* smaller learning rate"):
        tuned(pair, steps=5, lr=1e30)
    assert all(torch.equal(value, before[name]) for name, value in branches(student).items())


@pytest.mark.slow
def test_mistakes_are_named(pair):
    student, teacher = pair
    with pytest.raises(QuantFaceError, match="found 0 steps"):
        tuned(pair, steps=0)
    with pytest.raises(QuantFaceError, match="no images"):
        reconstruct(student, teacher, [], ["early"], 1, 1e-3)
    del teacher.late
    with pytest.raises(QuantFaceError, match="teacher has no block 'late'"):
        tuned(pair, ["late"])
    plain, bare = Net(), {"name": "w4a4", "branch": {"svd": 0}, "exclude": ["unused"]}
    prepare(plain, bare, CalibrationData(images(), progress=False))
    with pytest.raises(QuantFaceError, match="no block has a branch"):
        tuned((plain, Net()))
