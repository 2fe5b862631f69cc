"""Stand-ins have the size and the layers of the checkpoint to come."""

from __future__ import annotations

import itertools

import pytest
import torch
from quant_helpers import TinyNet, pictures

from quantface_arch.quant import (
    LayerBalance,
    Recipe,
    convert,
    load_checkpoint,
    quant_layers,
    quantize,
    save_checkpoint,
)
from quantface_arch.quant.checkpoint.save_load import checkpoint_tensors
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.specs import PLAIN_KINDS
from quantface_arch.quant.cost.stand_in import StandIn, stand_in_layer
from quantface_arch.quant.nn.layers import State

ARCH = {"type": "any"}


def described(net):
    return {
        x.name: (
            *(x.weight_spec.bits, x.activation_spec.bits, x.rank, x.branch_bits),
            *(x.balance.kind, x.balance.segments, x.balance.regular),
        )
        for x in quant_layers(net)
    }


@pytest.mark.parametrize("kind", ["none", "scale", "rotate", "both"])
@pytest.mark.parametrize(
    ("symmetric", "bits", "hadamard"),
    [(True, 16, "random"), (False, 16, "random"), (False, 8, "regular"), (True, 5, "regular")],
)
def test_a_stand_in_has_the_size_and_the_tensors_of_the_checkpoint(
    tmp_path, kind, symmetric, bits, hadamard
):
    recipe = Recipe.from_dict(
        {
            "name": "w4a6",
            "weights": {"symmetric": symmetric},
            "eight_bit": ["conv_out"],
            "balance": {"kind": kind, "hadamard": hadamard},
            "branch": {"svd": 2, "distill": 1, "budget": 1, "bits": bits},
        }
    )
    net = TinyNet(64)
    with torch.device("meta"):
        shapes = TinyNet(64)
    convert(shapes, recipe)
    file = StandIn.of(shapes, recipe, ARCH)
    file.save(tmp_path / "stand_in.safetensors")
    quantize(net, recipe, pictures(), progress=False)
    save_checkpoint(net, tmp_path / "real.safetensors", ARCH)
    real, found = (
        {key: (value.shape, value.dtype) for key, value in tensors.items()}
        for tensors in (
            checkpoint_tensors(net, ARCH)[0],
            {**file.tensors, "activations": file.activations},
        )
    )
    assert found == real
    size = (tmp_path / "real.safetensors").stat().st_size
    assert size <= file.bytes + 16 and file.bytes == pytest.approx(size, rel=0.01)
    loaded = load_checkpoint(tmp_path / "stand_in.safetensors", lambda _: TinyNet(64))
    assert described(loaded) == described(net)
    assert bool(loaded(pictures()).isfinite().all())


def test_a_layer_has_what_the_choice_says_and_runs():
    with torch.device("meta"):
        net = TinyNet()
    convert(net, Recipe.from_dict({"name": "w4a4", "branch": {"bits": 8}}))
    layer, rotation = net.linear, LayerBalance(None, ((1, 16),), regular=True)
    for *bits, rank, kind in itertools.product((4, 8), (4, 8), (0, 3), PLAIN_KINDS):
        made = stand_in_layer(layer, LayerChoice(*bits, rank, kind), rotation)
        assert made.state is State.QUANTIZED
        assert (made.weight_spec.bits, made.activation_spec.bits) == (*bits,)
        assert (made.rank, made.balance.kind, made.branch_bits) == (rank, kind, 8)
        assert made.balance.regular == (kind in ("rotate", "both"))
        assert bool(made(torch.randn(2, 16)).isfinite().all())
    assert layer.weight.is_meta and layer.state is State.CALIBRATING
