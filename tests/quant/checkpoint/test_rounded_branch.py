"""Rounded branches and regular rotations in a checkpoint: smaller, equal after loading, checked."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import contents, rewrite
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    Recipe,
    fold_trained,
    load_checkpoint,
    quant_layers,
    quantize,
    read_metadata,
    round_float_parts,
    save_checkpoint,
    trainable,
)
from quantface_arch.quant.cost.cost import total_cost
from quantface_arch.quant.cost.planned import checkpoint_cost, tensor_bytes

ARCH = {"type": "TinyNet"}


def build(_options=None):
    torch.manual_seed(1)
    return TinyNet(64)


def model_with(bits, iterations=1, **balance):
    branch = {"svd": 3, "distill": 1, "budget": 1, "bits": bits, "iterations": iterations}
    options = {"name": "w4a4", "balance": {"kind": "none", **balance}, "branch": branch}
    model = build().eval()
    quantize(model, Recipe.from_dict(options), pictures(), progress=False)
    return model


def saved(model, path):
    save_checkpoint(model, path, ARCH)
    return path


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_rounded_branch_saves_bytes_and_loads_bit_by_bit(tmp_path, bits, iterations):
    model, x = model_with(bits, iterations), pictures()
    path = saved(model, tmp_path / "rounded.safetensors")
    loaded = load_checkpoint(path, build)
    assert torch.equal(loaded(x), model(x))
    branched = [layer for layer in quant_layers(model) if layer.rank]
    assert branched and all(layer.branch_bits == bits for layer in quant_layers(loaded))
    for one, other in zip(quant_layers(model), quant_layers(loaded), strict=True):
        if one.rank:
            assert torch.equal(one.branch_down, other.branch_down)
            assert torch.equal(one.branch_up, other.branch_up)
    again = saved(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    plain = tensor_bytes(saved(model_with(16), tmp_path / "plain.safetensors"))
    values = sum(layer.branch_down.numel() + layer.branch_up.numel() for layer in branched)
    scales = sum(2 * 4 * layer.rank for layer in branched)
    less = plain - tensor_bytes(path)
    assert less == pytest.approx(values * (16 - bits) / 8 - scales, abs=2 * len(branched))
    assert less > 0


def test_the_cost_counts_the_bytes_of_a_rounded_branch(tmp_path):
    path = saved(model_with(8), tmp_path / "m.safetensors")
    # It raises an error if the count differs from the file.
    entries = checkpoint_cost(path, build(), {})
    assert total_cost(entries).bytes == tensor_bytes(path)


def test_the_weight_takes_over_what_rounding_the_branch_changes():
    rounded, plain = model_with(2).linear, model_with(16).linear
    wanted = build().linear.weight
    branches = [layer.branch_up @ layer.branch_down for layer in (rounded, plain)]
    changed = (branches[0] - branches[1]).norm()
    errors = [
        (layer.weight + branch - wanted).norm()
        for layer, branch in zip((rounded, plain), branches, strict=True)
    ]
    assert errors[0] < 1.3 * errors[1] and changed > 2 * errors[1]


def test_a_trained_rounded_branch_equals_the_saved_one(tmp_path):
    model, x = model_with(4), pictures()
    optimizer = torch.optim.Adam(trainable(model), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    before = model(x)
    fold_trained(model)
    # Training saw the rounded factors already.
    torch.testing.assert_close(model(x), before)
    round_float_parts(model)
    loaded = load_checkpoint(saved(model, tmp_path / "m.safetensors"), build)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("kind", ["rotate", "both"])
def test_a_regular_rotation_loads_bit_by_bit(tmp_path, kind):
    model, x = model_with(16, kind=kind, hadamard="regular", alpha=0.5), pictures()
    assert model.linear.balance.segments == ((1, 64),) and model.linear.balance.regular
    assert bool((model.linear.balance.signs(64) == 1).all())
    path = saved(model, tmp_path / "m.safetensors")
    loaded = load_checkpoint(path, build)
    assert torch.equal(loaded(x), model(x)) and loaded.linear.balance.regular
    fresh = model_with(16)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x)) and fresh.linear.balance.regular
    assert saved(fresh, tmp_path / "f.safetensors").stat().st_size > 0


def test_files_have_the_lowest_version_that_describes_them(tmp_path):
    path = tmp_path / "m.safetensors"
    for model, version in (
        (model_with(16), 1),
        (model_with(8), 2),
        (model_with(16, kind="rotate", hadamard="regular"), 2),
        (model_with(16, kind="rotate"), 1),
    ):
        assert read_metadata(saved(model, path))["format_version"] == version
        # Earlier releases refuse keys that they do not know.
        recipe = contents(path)[1]["recipe"]
        assert ("bits" in recipe["branch"]) == (model.linear.branch_bits != 16)
        assert ("hadamard" in recipe["balance"]) == model.linear.balance.regular


CHANGES = {
    "linear.branch_down": [
        (None, "not found"),
        (torch.zeros(4, 64).half(), "found torch.float16"),
        (torch.full((256,), 255, dtype=torch.uint8), "above the grid's largest, 127"),
    ],
    "linear.branch_up_scale": [
        (None, "not found"),
        (torch.zeros(4), "not positive and finite"),
        (torch.full((4,), torch.nan), "not positive and finite"),
        (torch.ones(5), r"found torch.float32 \(5,\)"),
    ],
}


@pytest.mark.parametrize(
    ("key", "value", "message"), [(key, *change) for key in CHANGES for change in CHANGES[key]]
)
def test_damage_is_named(tmp_path, key, value, message):
    path = saved(model_with(8), tmp_path / "m.safetensors")
    tensors, metadata = contents(path)
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    rewrite(path, tensors, metadata)
    with pytest.raises(QuantFaceError, match=rf"key {key}: .*{message}"):
        load_checkpoint(path, build)


def test_a_regular_order_that_does_not_exist_is_named(tmp_path):
    path = saved(model_with(16, kind="rotate", hadamard="regular"), tmp_path / "m.safetensors")
    tensors, metadata = contents(path)
    metadata["balance"]["linear"]["segments"] = [[2, 32]]
    rewrite(path, tensors, metadata)
    with pytest.raises(QuantFaceError, match="linear: there is no regular Hadamard order 32"):
        load_checkpoint(path, build)
