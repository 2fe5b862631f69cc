"""Compute the cost of a network before it exists: from a recipe, or from a checkpoint."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from quantface_arch.errors import QuantFaceError, check_patterns
from quantface_arch.quant.calibration.selection import branch_ranks, kinds_for
from quantface_arch.quant.checkpoint.metadata import Metadata, opened
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import ROTATED, SCALED, BalanceSpec
from quantface_arch.quant.cost.cost import Entry, network_cost, total_cost
from quantface_arch.quant.cost.macs import LayerWork
from quantface_arch.quant.nn.convert import convert_layers
from quantface_arch.quant.nn.layers import QuantLayer, quant_layers
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.hadamard import Segments

__all__ = [
    "checkpoint_cost",
    "costliest_balances",
    "recipe_cost",
    "undecided",
]

# This maps the names of types in .safetensors files to bytes per value.
VALUE_BYTES = {"F16": 2, "BF16": 2, "F32": 4}


def recipe_cost(
    model: nn.Module,
    recipe: Recipe,
    work: Mapping[str, LayerWork],
    products: Mapping[str, int] | None = None,
    balances: Mapping[str, LayerBalance] | None = None,
    learned_scales: bool = False,
) -> list[Entry]:
    """Return the cost that a converted model will have once a recipe has quantized it.

    Args:
        model: a converted model on any device.
        work, products: see ``network_cost``.
        balances: balancing by layer from an earlier run; None takes ``costliest_balances``.
        learned_scales: assume that training gives every layer a scale, whatever its balancing, see
            ``weight_trainers.LearnedScale``.

    Raises:
        QuantFaceError: see ``branch_ranks`` and ``costliest_balances``.
    """
    ranks = {name: sum(pair) for name, pair in branch_ranks(model, recipe.branch).items()}
    if learned_scales:
        balances = {layer.name: LayerBalance(_scale(layer)) for layer in quant_layers(model)}
    elif balances is None:
        balances = costliest_balances(model, recipe.balance)
    return network_cost(model, work, products, ranks, balances)


def _choices(
    model: nn.Module, spec: BalanceSpec
) -> Iterator[tuple[QuantLayer, tuple[str, ...], Segments]]:
    """Yield each layer of a converted model, its allowed kinds of balancing, and its rotation."""
    layers = list(quant_layers(model))
    check_patterns("balance layers", spec.layers, [layer.name for layer in layers])
    sources = traits_of(model).input_sources()
    for layer in layers:
        parts = sources.get(layer.name, (layer.channels,))
        yield layer, *kinds_for(layer, spec, parts)


def costliest_balances(model: nn.Module, spec: BalanceSpec) -> dict[str, LayerBalance]:
    """Return the costliest balancing, which scales and rotates every layer if the spec allows it.

    If the spec allows only one kind, the layer will have exactly that balancing.

    Args:
        model: a converted model on any device.

    Returns:
        balancing by layer; scales are on the meta device, without values.

    Raises:
        QuantFaceError: a pattern of ``spec.layers`` matches no layer.
    """
    found = {}
    for layer, kinds, segments in _choices(model, spec):
        scale = _scale(layer) if {*SCALED} & {*kinds} else None
        rotated = bool({*ROTATED} & {*kinds})
        found[layer.name] = LayerBalance(
            scale, segments if rotated else (), regular=rotated and spec.regular
        )
    return found


def undecided(model: nn.Module, spec: BalanceSpec) -> list[str]:
    """Return the layers of a converted model whose balancing calibration will choose."""
    return [layer.name for layer, kinds, _ in _choices(model, spec) if len({*kinds}) > 1]


def checkpoint_cost(
    path: str | os.PathLike[str],
    model: nn.Module,
    work: Mapping[str, LayerWork],
    products: Mapping[str, int] | None = None,
) -> list[Entry]:
    """Return the cost of a checkpoint without reading its tensors.

    Args:
        path: path of the file.
        model: the float architecture of its metadata, on any device. It is converted in place.
        work, products: see ``network_cost``.

    Raises:
        QuantFaceError: the file cannot be read, does not fit the architecture, or its tensors take
            another number of bytes than the computed cost.
    """
    path = Path(path)
    with opened(path) as (file, metadata):
        try:
            if metadata.recipe is not None:
                convert_layers(model, metadata.recipe, metadata.bits)
            balances = dict(_stored_balances(model, metadata))
        except QuantFaceError as error:
            raise QuantFaceError(f"{path}: {error}") from error
        types = {key: file.get_slice(key).get_dtype() for key in set(file.keys())}
    widths = {key: VALUE_BYTES[kind] for key, kind in types.items() if kind in VALUE_BYTES}
    entries = network_cost(model, work, products, metadata.ranks, balances, widths)
    counted, found = total_cost(entries).bytes, tensor_bytes(path)
    if counted != found:
        raise QuantFaceError(
            f"{path}: its tensors take {found:,} bytes, but those of its architecture and metadata "
            f"take {counted:,}; the file is of another architecture, or damaged"
        )
    return entries


def tensor_bytes(path: Path) -> int:
    """Return the bytes of a ``.safetensors`` file without its header."""
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return path.stat().st_size - 8 - header


def _scale(layer: QuantLayer) -> torch.Tensor:
    return torch.empty(layer.channels, device="meta")


def _stored_balances(model: nn.Module, metadata: Metadata) -> Iterator[tuple[str, LayerBalance]]:
    for name, options in metadata.balance.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLayer)
        scaled = isinstance(options, dict) and options.get("scaled") is True
        balance = LayerBalance.from_dict(name, options, _scale(layer) if scaled else None)
        layer.check_balance(replace(balance, scale=None))
        yield name, balance
