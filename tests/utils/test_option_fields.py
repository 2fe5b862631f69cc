"""Options are checked where they are declared: types, limits, old names."""

from __future__ import annotations

import pytest

from quantface_arch.data.options import FaceDatasetOptions
from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.allocate_options import AllocateOptions
from quantface_arch.models.options import (
    DiscriminatorOptions,
    LossTermOptions,
    OSDFaceOptions,
    QuantFaceOptions,
    ReconstructionOptions,
)
from quantface_arch.utils.option_fields import parse_options, split_options

PLAYER = {"network": {"type": "N"}, "loss": {"type": "L"}, "lr": 1e-4}
BLOCKS = {"blocks": ["a"], "steps": 3, "lr": 0.1}


@pytest.mark.parametrize(
    ("kind", "given", "old", "new", "value"),
    [
        (OSDFaceOptions, {"total_iter": 1}, "adversary", "discriminator", PLAYER),
        (QuantFaceOptions, {"total_iter": 1}, "weights", "train_weights", "merged"),
        (ReconstructionOptions, BLOCKS, "weights", "train_weights", "rounding"),
        (AllocateOptions, {}, "weights", "weight_bits", [4, 6]),
    ],
)
def test_an_old_name_means_the_same_as_the_new_one(kind, given, old, new, value):
    by_new = parse_options(kind, "train", {**given, new: value})
    assert parse_options(kind, "train", {**given, old: value}) == by_new
    assert by_new != parse_options(kind, "train", given)
    with pytest.raises(QuantFaceError, match=f"{new} and its old name {old}"):
        parse_options(kind, "train", {**given, old: value, new: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "train option total_iter: missing; expected number of training steps"),
        ({"totl": 1}, "train options: unknown key totl; allowed are accumulate, .*train_weights"),
        ({"total_iter": "9"}, "total_iter: found '9', allowed is a whole number from 0"),
        ({"total_iter": 1.5}, "total_iter: found 1.5, allowed is a whole number"),
        ({"total_iter": True}, "total_iter: found True, allowed is a whole number"),
        ({"ema_decay": 1}, "ema_decay: found 1, allowed is a number from 0, below 1"),
        ({"clip_grad": 0}, "clip_grad: found 0, allowed is a number above 0"),
        ({"autocast": "half"}, "autocast: found 'half', allowed are bfloat16, null"),
        ({"losses": "L1Loss"}, "losses: found 'L1Loss', allowed is a list"),
        ({"optim_g": "Adam"}, "optim_g: found 'Adam', allowed is a mapping of options"),
        ({"checkpointing": "yes"}, "checkpointing: found 'yes', allowed is true or false"),
        (
            {"reconstruction": {**BLOCKS, "step": 1}},
            "train option reconstruction: unknown key step; allowed are blocks",
        ),
        (
            {"reconstruction": {**BLOCKS, "lr": 0}},
            "train option reconstruction: lr: found 0, allowed is a number above 0",
        ),
    ],
)
def test_a_mistake_names_the_option_what_was_found_and_what_is_allowed(given, message):
    with pytest.raises(QuantFaceError, match=message):
        parse_options(QuantFaceOptions, "train", {"total_iter": 1, **given} if given else given)


def test_values_come_in_the_types_that_were_declared():
    found = parse_options(
        FaceDatasetOptions,
        "dataset",
        {"dataroot_gt": "faces", "gt_size": [[0, 32]], "repeat": None, "degradation": None}
        | {"io_backend": None, "rescale_prob": 1, "use_hflip": 0},
    )
    assert found.repeat == {} and found.io_backend == {"type": "disk"}
    assert found.degradation.jpeg == (50, 95) and found.use_hflip is False
    assert isinstance(found.rescale_prob, float) and found.gt_size == ([0, 32],)
    whole = parse_options(QuantFaceOptions, "train", {"total_iter": 3e5, "reconstruction": None})
    assert whole.total_iter == 300_000 and isinstance(whole.total_iter, int)
    with pytest.raises(QuantFaceError, match=r"degradation: jpeg: found \[9\], allowed is a list"):
        parse_options(
            FaceDatasetOptions,
            "dataset",
            {"dataroot_gt": "faces", "gt_size": 32, "degradation": {"jpeg": [9]}},
        )


def test_a_block_is_split_into_what_is_declared_and_the_rest():
    own, rest = split_options(LossTermOptions, {"type": "L1Loss", "every": 2, "loss_weight": 1.0})
    assert own == {"type": "L1Loss", "every": 2} and rest == {"loss_weight": 1.0}
    assert parse_options(AllocateOptions, "allocate", {"lambda": 1}).lambda_ == 1
    assert parse_options(DiscriminatorOptions, "train", PLAYER).start_iter == 0
