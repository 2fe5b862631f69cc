"""Checkpoints: a single ``.safetensors`` file that can be loaded on its own, without pickle.

A quantized model has these tensors, for a layer called NAME:

- ``NAME.weight``: uint8 (n,), the weight's integers counted from the grid's lowest, packed.
- ``NAME.weight_scale``: float32 (Cout,) or (1,); ``NAME.weight_zero_point``: uint8, only where the
  grid is asymmetric.
- ``NAME.balance_scale``: float32 (Cin,), only where the layer's channels are scaled; rotations are
  in the metadata.
- ``NAME.branch_down``, ``NAME.branch_up``: 16-bit (r, Cin, ...) and (Cout, r), only where the layer
  has a branch. Rounded ones are packed like weights; ``NAME.branch_down_scale`` and
  ``NAME.branch_up_scale``, float32 (r,), are beside them.
- ``NAME.act_zero_point``: int8 (Cin,), only where the channels of the input have their own.
- ``activations``: float32 (layers, 4), a row per layer in the order of the metadata's ``bits``:
  scale and zero point of the balanced input, and the input's range (low, high) before balancing.
  The zero point is 0 where the channels have their own.
- All other tensors (biases, norms, codebooks) have their own names. They are stored in 16 bits if
  their values fit.

A float model has only tensors of the last kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.branches import has_rounded_branch, packed_branch
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.checkpoint.metadata import Metadata, opened
from quantface_arch.quant.checkpoint.reader import ACTIVATIONS, Lower, Reader
from quantface_arch.quant.checkpoint.skeleton import skeleton
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.convert import convert_layers
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers
from quantface_arch.quant.nn.traits import set_traits, traits_of
from quantface_arch.quant.ops.lowrank import factor_shapes, full_rank
from quantface_arch.quant.ops.packing import pack
from quantface_arch.quant.ops.quantizer import dequantize, grid, quantize
from quantface_arch.utils.files import atomic_path

__all__ = [
    "build_skeleton",
    "checkpoint_tensors",
    "float_parts",
    "load_checkpoint",
    "read_metadata",
    "round_float_parts",
    "save_checkpoint",
]


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    arch: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a float or a quantized model.

    Float parts are rounded to ``dtype`` in the file only. If the loaded model has to equal the
    saved one bit by bit, call ``round_float_parts`` first; ``quantize`` does that.

    Args:
        arch: type and options from which ``load_checkpoint``'s ``build`` makes the float model.
        extra: plain data to keep in the metadata.
        dtype: float16, bfloat16 or float32, for the parts that are not quantized; a tensor that
            exceeds the range of ``dtype`` is stored in float32.

    Raises:
        QuantFaceError: a layer is not calibrated, the file cannot be written, or ``arch`` or
            ``extra`` is not plain data.
    """
    tensors, header = checkpoint_tensors(model, arch, extra, dtype)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def checkpoint_tensors(
    model: nn.Module,
    arch: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of the file that ``save_checkpoint`` writes.

    Args:
        model, arch, extra, dtype: see ``save_checkpoint``.

    Raises:
        QuantFaceError: see ``save_checkpoint``.
    """
    layers = _layers(model)
    tensors = {name: _stored(value, dtype) for name, value in float_parts(model).items()}
    for name, layer in layers.items():
        tensors.update({f"{name}.{key}": value for key, value in _packed(name, layer).items()})
    if layers:
        tensors[ACTIVATIONS] = torch.stack([_activation_row(layer) for layer in layers.values()])
    recipe = traits_of(model).quant_recipe if layers else None
    return tensors, _describe(layers, recipe, arch, extra or {}).to_header()


def _describe(
    layers: Mapping[str, QuantLayer],
    recipe: Recipe | None,
    arch: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Metadata:
    """Return the metadata of a model with these quantized layers."""
    return Metadata(
        arch=dict(arch),
        state=State.QUANTIZED if layers else State.FLOAT,
        bits={
            name: (layer.weight_spec.bits, layer.activation_spec.bits)
            for name, layer in layers.items()
        },
        balance={
            name: layer.balance.to_dict()
            for name, layer in layers.items()
            if layer.balance.kind != "none"
        },
        ranks={name: layer.rank for name, layer in layers.items() if layer.rank},
        recipe=recipe,
        extra=dict(extra),
    )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the checked metadata of a checkpoint without reading its tensors.

    Raises:
        QuantFaceError: the file is missing, truncated, malformed, or of another format or version.
    """
    with opened(Path(path)) as (_, metadata):
        return metadata.to_dict()


def load_checkpoint(
    path: str | os.PathLike[str],
    build: Build,
    lower: Lower | None = None,
) -> nn.Module:
    """Build a model and fill it from a checkpoint; the original weights are not needed.

    Args:
        build: makes the float architecture from the metadata's ``arch``. Its random initialization
            is skipped.
        lower: see ``Reader.fill``; with it, only one layer at a time is unpacked to floating point.

    Returns:
        the model on the CPU, in evaluation mode, with its float parts in float32. Its attribute
        ``arch_options`` can be passed to ``save_checkpoint`` as ``arch``.

    Raises:
        QuantFaceError: the file is damaged, has another version, or does not fit the architecture;
            the message names the file and the key.
    """
    path = Path(path)
    with opened(path) as (file, metadata):
        model = skeleton(path, file, metadata, build)
        try:
            if metadata.recipe is not None:
                convert_layers(model, metadata.recipe, metadata.bits)
            _add_branches(model, metadata.ranks)
        except QuantFaceError as error:
            raise QuantFaceError(f"{path}: {error}") from error
        for layer in quant_layers(model):
            # A weight that is tied to another module's becomes the layer's own.
            layer.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        Reader(path, file).fill(model, metadata, float_parts(model), lower)
    set_traits(model, arch_options=metadata.arch)
    return model.eval()


def build_skeleton(path: str | os.PathLike[str], build: Build) -> nn.Module:
    """Build the float architecture of a checkpoint, in evaluation mode, with undefined weights.

    Raises:
        QuantFaceError: see ``read_metadata``; or the architecture cannot be built.
    """
    with opened(Path(path)) as (file, metadata):
        model = skeleton(Path(path), file, metadata, build)
    set_traits(model, arch_options=metadata.arch)
    return model.eval()


@torch.no_grad()
def round_float_parts(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Round branches, and all tensors that a checkpoint stores in floating point, as it does."""
    for value in float_parts(model).values():
        value.copy_(_stored(value, dtype))
    for layer in quant_layers(model):
        layer.round_branch()


def _layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Return the quantized layers by their current names in the model.

    Raises:
        QuantFaceError: a layer cannot be saved in its state.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)
    }
    for name, layer in layers.items():
        if layer.state is not State.QUANTIZED:
            raise QuantFaceError(
                f"layer {name}: found state {layer.state.value}, expected quantized"
            )
        if layer.act_bounds is not None or layer.tuner is not None:
            raise QuantFaceError(
                f"layer {name}: its range or weight is being trained; call fold_trained(model)"
            )
    if layers and traits_of(model).quant_recipe is None:
        raise QuantFaceError("checkpoint: pass the same model that convert was called on")
    return layers


def float_parts(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are stored in floating point, each under one of its names only."""
    owned = {
        id(value)
        for layer in quant_layers(model)
        for value in (layer.weight, *layer.buffers(recurse=False), *_rounded(layer))
    }
    parts: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        is_tensor = isinstance(value, Tensor) and not name.endswith("_extra_state")
        if is_tensor and id(value) not in owned:
            owned.add(id(value))
            parts[name] = value
    return parts


def _rounded(layer: QuantLayer) -> tuple[Tensor | None, ...]:
    return (layer.branch_down, layer.branch_up) if has_rounded_branch(layer) else ()


def _add_branches(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Give layers branches of these ranks, to be filled later."""
    layers = {layer.name: layer for layer in quant_layers(model)}
    for name, rank in ranks.items():
        layer = layers.get(name)
        largest = 0 if layer is None or layer.groups > 1 else full_rank(layer.weight)
        if layer is None or rank > largest:
            raise QuantFaceError(
                f"metadata ranks of layer {name!r}: found {rank}, allowed are at most {largest}"
            )
        layer.set_branch(*map(torch.zeros, factor_shapes(layer.weight, rank)))


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    if value.is_floating_point():
        fits = value.numel() == 0 or bool(value.abs().max() <= torch.finfo(dtype).max)
        value = value.to(dtype if fits else torch.float32)
    return value.contiguous().clone()


def _packed(name: str, layer: QuantLayer) -> dict[str, Tensor]:
    spec = layer.weight_spec
    qmin, qmax = grid(spec.bits, spec.symmetric)
    scale, zero = layer.per_weight(layer.weight_scale), layer.per_weight(layer.weight_zero_point)
    weight = layer.weight.detach()
    integers = quantize(weight, scale, zero, qmin, qmax)
    if not torch.equal(dequantize(integers, scale, zero).to(weight.dtype), weight):
        raise QuantFaceError(f"layer {name}: its weight was changed after it was quantized")
    tensors = {"weight": pack((integers - qmin).cpu(), spec.bits)}
    tensors["weight_scale"] = layer.weight_scale.detach().float().cpu().clone()
    if layer.balance.scale is not None:
        tensors["balance_scale"] = layer.balance.scale.detach().float().cpu().clone()
    if not spec.symmetric:
        tensors["weight_zero_point"] = layer.weight_zero_point.detach().cpu().to(torch.uint8)
    if layer.act_zero_point.ndim:
        tensors["act_zero_point"] = layer.act_zero_point.detach().cpu().to(torch.int8)
    return {**tensors, **packed_branch(layer)}


def _activation_row(layer: QuantLayer) -> Tensor:
    zero = torch.zeros_like(layer.act_scale) if layer.act_zero_point.ndim else layer.act_zero_point
    values = (layer.act_scale, zero, layer.act_low, layer.act_high)
    return torch.stack(values).detach().float().cpu()
