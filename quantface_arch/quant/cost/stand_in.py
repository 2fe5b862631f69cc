"""The file that quantization will write, before anything is calibrated.

Its values mean nothing, but it has the size of the checkpoint to come, and a runtime takes as long
to run it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantface_arch.quant.calibration.selection import branch_ranks
from quantface_arch.quant.checkpoint.branches import empty_branch
from quantface_arch.quant.checkpoint.metadata import Metadata
from quantface_arch.quant.checkpoint.reader import ACTIVATIONS
from quantface_arch.quant.checkpoint.save_load import float_parts
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import ROTATED, SCALED
from quantface_arch.quant.cost.planned import costliest_balances
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.lowrank import factor_shapes
from quantface_arch.quant.ops.packing import packed_size
from quantface_arch.quant.ops.quantizer import grid

__all__ = ["StandIn", "stand_in_layer"]

# Seeds of rotations have as many digits as this one.
SEED = 10**9


@dataclass(frozen=True)
class StandIn:
    """The tensors and the metadata of a checkpoint to come.

    Attributes:
        tensors: tensors on the meta device by key, except the activation ranges.
        activations: float32 (layers, 4), the activation ranges.
        header: the metadata of the file.
    """

    tensors: Mapping[str, Tensor]
    activations: Tensor
    header: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, arch: Mapping[str, Any]) -> StandIn:
        """Return the stand-in of a model that a recipe will quantize.

        Where calibration chooses the balancing, the costliest one is assumed.

        Args:
            model: a converted model on any device.
            arch: see ``save_checkpoint``.

        Raises:
            QuantFaceError: see ``branch_ranks`` and ``costliest_balances``.
        """
        layers = {layer.name: layer for layer in quant_layers(model)}
        ranks = {name: sum(pair) for name, pair in branch_ranks(model, recipe.branch).items()}
        balances = {
            name: replace(balance, seed=SEED if balance.segments and not balance.regular else 0)
            for name, balance in costliest_balances(model, recipe.balance).items()
        }
        tensors = {
            name: _empty(value.shape, torch.float16 if value.is_floating_point() else value.dtype)
            for name, value in float_parts(model).items()
        }
        for name, layer in layers.items():
            own = _layer_tensors(layer, ranks.get(name, 0), balances[name])
            tensors.update({f"{name}.{key}": value for key, value in own.items()})
        metadata = Metadata(
            arch=dict(arch),
            state=State.QUANTIZED,
            bits={name: (x.weight_spec.bits, x.activation_spec.bits) for name, x in layers.items()},
            recipe=recipe,
            balance={name: x.to_dict() for name, x in balances.items() if x.kind != "none"},
            ranks={name: rank for name, rank in ranks.items() if rank},
        )
        rows = torch.tensor([_activation_row(layer) for layer in layers.values()])
        return cls(tensors, rows, metadata.to_header())

    @property
    def bytes(self) -> int:
        """Return the size of the file; at most some bytes per tensor too many."""
        tensors = {**self.tensors, ACTIVATIONS: self.activations}
        total = sum(value.numel() * value.element_size() for value in tensors.values())
        entries = {
            key: {"dtype": "F16", "shape": list(value.shape), "data_offsets": [total, total]}
            for key, value in tensors.items()
        }
        text = json.dumps({"__metadata__": self.header, **entries}, separators=(",", ":"))
        return 8 + len(text) + total

    def save(self, path: Path) -> None:
        """Write a checkpoint that ``load_checkpoint`` reads."""
        tensors = {key: _filled(value.shape, value.dtype) for key, value in self.tensors.items()}
        save_file({**tensors, ACTIVATIONS: self.activations}, path, metadata=dict(self.header))


@torch.no_grad()
def stand_in_layer(layer: QuantLayer, choice: LayerChoice, rotation: LayerBalance) -> QuantLayer:
    """Return a quantized layer with a choice's bit widths, branch and balancing.

    Args:
        layer: a layer on any device that is not quantized; only its shape and specs are read.
        rotation: a balancing that only rotates; it is left out if the choice has no rotation.
    """
    source = copy.copy(layer)
    source._parameters = {
        name: None if value is None else nn.Parameter(_filled(value.shape))
        for name, value in layer._parameters.items()
    }
    weights, activations = (
        spec.with_bits(bits)
        for spec, bits in zip((layer.weight_spec, layer.activation_spec), choice.bits, strict=True)
    )
    made = type(layer).from_float(source, replace(weights, range="minmax"), activations, layer.name)
    kind, rank = choice.balance or "none", choice.rank or 0
    scale = _filled(torch.Size([layer.channels])) if kind in SCALED else None
    made.set_balance(replace(rotation if kind in ROTATED else LayerBalance(), scale=scale))
    if rank:
        made.set_branch(*map(_filled, factor_shapes(made.weight, rank)))
        made.round_branch()
    made.quantize_weight()
    made.set_activation_range(-4.0, 4.0)
    made.act_low.fill_(-4.0)
    made.act_high.fill_(4.0)
    made.state = State.QUANTIZED
    return made


def _filled(shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of small positive values that differ, so that compilers keep them all.

    Integers are 0.
    """
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return ((torch.arange(shape.numel()) % 7 + 1) / 64).to(dtype).view(shape)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _layer_tensors(layer: QuantLayer, rank: int, balance: LayerBalance) -> dict[str, Tensor]:
    """Return what ``save_checkpoint`` writes of a layer, besides its bias."""
    weight, spec = layer.weight, layer.weight_spec
    tensors = {
        "weight": _empty((packed_size(weight.numel(), spec.bits),), torch.uint8),
        "weight_scale": _empty(layer.weight_scale.shape, torch.float32),
    }
    if not spec.symmetric:
        tensors["weight_zero_point"] = _empty(layer.weight_scale.shape, torch.uint8)
    if balance.scale is not None:
        tensors["balance_scale"] = _empty((layer.channels,), torch.float32)
    if layer.zero_points_shape:
        tensors["act_zero_point"] = _empty(layer.zero_points_shape, torch.int8)
    return {**tensors, **(empty_branch(layer, rank) if rank else {})}


def _activation_row(layer: QuantLayer) -> tuple[float, float, float, float]:
    """Return scale, zero point, low and high of a range around zero."""
    spec = layer.activation_spec
    qmin, qmax = grid(spec.bits, spec.symmetric)
    zero = 0 if layer.zero_points_shape else (qmin + qmax + 1) // 2
    return 8 / (qmax - qmin), zero, -4.0, 4.0
