"""The account of a checkpoint: bytes against the saved file, foreseen and after calibration."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
from cost_helpers import Wide, build, by_name, converted, recipe_of, stored_bytes
from quant_helpers import pictures
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    fold_trained,
    load_checkpoint,
    quant_layers,
    quantize,
    save_checkpoint,
    trainable,
)
from quantface_arch.quant.cost.cost import network_cost, total_cost
from quantface_arch.quant.cost.macs import count_work
from quantface_arch.quant.cost.planned import (
    checkpoint_cost,
    costliest_balances,
    recipe_cost,
    undecided,
)


@pytest.mark.parametrize(
    "options",
    [
        recipe_of("none", rank=(0, 0)),
        recipe_of("scale", 3, 6),
        recipe_of("rotate", 5, 4, rank=(2, 0)),
        recipe_of("both", granularity="tensor"),
        recipe_of("both", 6, 8, symmetric=False),
        recipe_of("both", granularity="group", group=16),
        {**recipe_of("both"), "exclude": ["body"]},
    ],
    ids=["none", "scale", "rotate", "tensor", "asymmetric", "group", "float layer"],
)
def test_bytes_are_those_of_the_saved_file_before_and_after_calibration(options, tmp_path):
    meta, work, recipe = converted(options)
    assert undecided(meta, recipe.balance) == []
    foreseen = recipe_cost(meta, recipe, work)
    net = Wide().eval()
    quantize(net, options, pictures(2), progress=False)
    path = tmp_path / "q.safetensors"
    save_checkpoint(net, path, {})
    assert total_cost(foreseen).bytes == stored_bytes(path)
    counted = checkpoint_cost(path, Wide().to("meta"), work)
    assert counted == foreseen == network_cost(net, work)


def test_before_calibration_a_choice_counts_as_the_most_it_can_cost(wide_model, tmp_path):
    meta, work, recipe = converted(recipe_of("auto"))
    foreseen = total_cost(recipe_cost(meta, recipe, work))
    assert set(undecided(meta, recipe.balance)) == {"body", "linear", "line", "conv_out"}
    path = tmp_path / "q.safetensors"
    save_checkpoint(wide_model, path, {})
    actual = total_cost(checkpoint_cost(path, Wide().to("meta"), work))
    assert actual.bytes == stored_bytes(path) < foreseen.bytes
    assert actual.operations < foreseen.operations
    assert {**asdict(actual), "balance_bytes": 0, "scalings": 0, "additions": 0} == {
        **asdict(foreseen),
        "balance_bytes": 0,
        "scalings": 0,
        "additions": 0,
    }
    plan = {layer.name: layer.balance for layer in quant_layers(wide_model)}
    assert total_cost(recipe_cost(meta, recipe, work, balances=plan)) == actual
    kinds = {name: item.kind for name, item in costliest_balances(meta, recipe.balance).items()}
    assert kinds.pop("conv_in") == "none" and set(kinds.values()) == {"both"}


def test_learned_scales_are_counted(tmp_path):
    options = recipe_of("scale", symmetric=False)
    meta, work, recipe = converted(options)
    foreseen = recipe_cost(meta, recipe, work, learned_scales=True)
    net, teacher = Wide().eval(), Wide().eval()
    quantize(net, options, pictures(2), progress=False)
    trainable(net, weights="scale", teacher=teacher)
    fold_trained(net)
    path = tmp_path / "q.safetensors"
    save_checkpoint(net, path, {})
    assert checkpoint_cost(path, Wide().to("meta"), work) == foreseen
    assert total_cost(foreseen).bytes == stored_bytes(path)
    assert by_name(foreseen)["linear"].cost.balance_bytes == 4 * 48


def test_float_tensors_count_at_the_width_that_the_file_has(wide_model, tmp_path):
    work = count_work(wide_model, pictures(1))
    wide, large = tmp_path / "wide.safetensors", tmp_path / "large.safetensors"
    save_checkpoint(wide_model, wide, {}, dtype=torch.float32)
    changed = copy.deepcopy(wide_model)
    with torch.no_grad():
        changed.norm.weight[0] = 1e6
    save_checkpoint(changed, large, {})
    for path, more in ((wide, None), (large, 2 * 48)):
        cost = total_cost(checkpoint_cost(path, Wide().to("meta"), work))
        plain = total_cost(network_cost(wide_model, work))
        floats = cost.branch_bytes + cost.float_bytes
        assert cost.bytes == stored_bytes(path)
        assert floats - plain.branch_bytes - plain.float_bytes == (more or floats // 2)
    load_checkpoint(large, build)


def test_a_file_that_does_not_fit_is_refused(wide_model, tmp_path):
    path = tmp_path / "q.safetensors"
    save_checkpoint(wide_model, path, {})
    with pytest.raises(QuantFaceError, match=r"q\.safetensors: bit map: .*no layer"):
        checkpoint_cost(path, nn.Sequential(nn.Conv2d(3, 3, 3)), {})
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in set(file.keys())}
        metadata = file.metadata()
    save_file({**tensors, "more": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(QuantFaceError, match=r"q\.safetensors: its tensors take .* bytes, but"):
        checkpoint_cost(path, Wide(), {})


def test_patterns_of_balancing_that_match_nothing_are_named():
    options = recipe_of("none")
    options["balance"]["layers"] = {"nothing.*": "both"}
    meta, work, recipe = converted(options)
    with pytest.raises(QuantFaceError, match=r"balance layers: pattern 'nothing\.\*' matches no"):
        recipe_cost(meta, recipe, work)
