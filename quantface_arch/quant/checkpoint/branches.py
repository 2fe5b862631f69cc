"""Rounded branches in a checkpoint: packed integers and a scale per component of each factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantface_arch.quant.config.specs import FLOAT_BITS
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.factors import factor_scale, per_component
from quantface_arch.quant.ops.lowrank import factor_shapes
from quantface_arch.quant.ops.packing import pack, packed_size, unpack
from quantface_arch.quant.ops.quantizer import dequantize, grid, quantize

if TYPE_CHECKING:
    from quantface_arch.quant.checkpoint.reader import Reader

__all__ = ["empty_branch", "fill_branch", "has_rounded_branch", "packed_branch"]

# The names of the factors and the axis of their components.
FACTORS = (("branch_down", 0), ("branch_up", 1))


def has_rounded_branch(layer: QuantLayer) -> bool:
    """Return whether a layer has a branch that is stored in integers."""
    return layer.rank > 0 and layer.branch_bits != FLOAT_BITS


def empty_branch(layer: QuantLayer, rank: int) -> dict[str, Tensor]:
    """Return what a checkpoint has of a layer's branch of a rank, on the meta device."""
    tensors: dict[str, Tensor] = {}
    for (name, _), shape in zip(FACTORS, factor_shapes(layer.weight, rank), strict=True):
        if layer.branch_bits == FLOAT_BITS:
            tensors[name] = torch.empty(shape, dtype=torch.float16, device="meta")
        else:
            size = packed_size(shape.numel(), layer.branch_bits)
            tensors[name] = torch.empty(size, dtype=torch.uint8, device="meta")
            tensors[f"{name}_scale"] = torch.empty(rank, device="meta")
    return tensors


def packed_branch(layer: QuantLayer) -> dict[str, Tensor]:
    """Return the tensors of a layer's rounded branch; none if its branch is not rounded."""
    tensors: dict[str, Tensor] = {}
    if not has_rounded_branch(layer):
        return tensors
    qmin, qmax = grid(layer.branch_bits, symmetric=True)
    for name, axis in FACTORS:
        factor = getattr(layer, name).detach().float()
        scale = factor_scale(factor, axis, layer.branch_bits)
        steps = per_component(scale, factor, axis)
        integers = quantize(factor, steps, torch.zeros_like(steps), qmin, qmax)
        tensors[name] = pack((integers - qmin).cpu(), layer.branch_bits)
        tensors[f"{name}_scale"] = scale.cpu()
    return tensors


def fill_branch(reader: Reader, name: str, layer: QuantLayer) -> None:
    """Fill a layer's rounded branch from a file; the layer ``name`` must have the right rank.

    Raises:
        QuantFaceError: a tensor is missing, or not what the layer needs.
    """
    if not has_rounded_branch(layer):
        return
    qmin, qmax = grid(layer.branch_bits, symmetric=True)
    for part, axis in FACTORS:
        key, factor = f"{name}.{part}", getattr(layer, part)
        scale = reader.read(f"{key}_scale", (layer.rank,), (torch.float32,))
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise reader.error(f"{key}_scale", "found a scale that is not positive and finite")
        size = packed_size(factor.numel(), layer.branch_bits)
        packed = reader.read(key, (size,), (torch.uint8,))
        integers = unpack(packed, layer.branch_bits, factor.numel()).view(factor.shape).int() + qmin
        if int(integers.max()) > qmax:
            raise reader.error(key, f"found an integer above the grid's largest, {qmax}")
        steps = per_component(scale, factor, axis)
        factor.copy_(dequantize(integers, steps, torch.zeros_like(steps)))
