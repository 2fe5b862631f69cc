"""Convert a lowered torch network to OpenVINO's representation, part by part."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import LoweredLayer, Lowering
from quantface_arch.runtime.openvino.compiled_parts import EXPORTED
from quantface_arch.runtime.openvino.group_norm import keep_in_float32, spread_group_norms
from quantface_arch.runtime.openvino.upsampling import merge_upsampling
from quantface_arch.runtime.parts import (
    Part,
    Whole,
    example_image,
    lowered_network,
    only,
    other_image,
    record,
)
from quantface_arch.runtime.sizes import OneSizeError, inputs_at_another_size, traced
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.progress import progress_bar

__all__ = ["converted", "save", "trace_checkpoint", "trace_part", "write_openvino"]


@torch.no_grad()
def trace_checkpoint(path: Path, build: Build, lowering: Lowering, folder: Path) -> dict[str, Any]:
    """Write ``NAME.xml`` and ``NAME.bin`` of every part whose graph holds for all sizes.

    Returns:
        ``parts``: the names of all parts; ``one_size``: those of them that ``trace_part`` traces;
        ``exact``: whether everything except integer products must be computed in float32, because
        the network has to match the reference; ``arch_options`` and ``input_range``: see
        ``NetworkTraits``.

    Raises:
        QuantFaceError: see ``load_checkpoint``, ``Lowering`` and ``converted``.
    """
    network = lowered_network(path, build, lowering)
    recorded, layers = record(network), lowered_layers(network)
    others, one_size, traits = inputs_at_another_size(network), [], traits_of(network)
    for name in progress_bar(traits.parts, desc=f"compiling {path.stem}, once", unit="part"):
        inputs, called = recorded[name]
        try:
            with only(network, called):
                model = converted(Part(network, name), inputs, others.get(name), path)
        except OneSizeError:
            one_size.append(name)
        else:
            save(rearranged(model, layers, lowering), folder / f"{name}.xml")
    return {"parts": traits.parts, "one_size": one_size, **facts(network, layers)}


@torch.no_grad()
def trace_part(
    path: Path,
    build: Build,
    lowering: Lowering,
    name: str,
    inputs: tuple[np.ndarray, ...],
    folder: Path,
) -> None:
    """Write ``NAME.xml`` and ``NAME.bin`` of a part for inputs of these shapes alone.

    Raises:
        QuantFaceError: see ``trace_checkpoint``.
    """
    network = lowered_network(path, build, lowering)
    _, called = record(network)[name]
    with only(network, called):
        model = converted(Part(network, name), tuple(map(torch.tensor, inputs)), None, path)
    save(rearranged(model, lowered_layers(network), lowering), folder / f"{name}.xml")


@torch.no_grad()
def write_openvino(path: Path, build: Build, lowering: Lowering, target: Path) -> None:
    """Write a checkpoint's whole network as ``target``, an .xml file, with a .bin file beside it.

    Raises:
        QuantFaceError: see ``trace_checkpoint``; or the files cannot be written.
    """
    network = lowered_network(path, build, lowering)
    image, layers = example_image(network), lowered_layers(network)
    model = converted(Whole(network), (image,), (other_image(network),), path)
    model = rearranged(model, layers, lowering)
    model.set_rt_info(json.dumps(facts(network, layers)), [EXPORTED])
    with atomic_path(target) as temporary:
        try:
            save(model, temporary)
            # Write the weights first: the .xml must never exist without its .bin.
            temporary.with_suffix(".bin").replace(target.with_suffix(".bin"))
        except (OSError, RuntimeError) as error:
            raise QuantFaceError(f"cannot write {target}: {error}") from error
        finally:
            temporary.with_suffix(".bin").unlink(missing_ok=True)


def lowered_layers(network: nn.Module) -> dict[str, LoweredLayer]:
    """Return a network's lowered layers by name."""
    modules = network.named_modules()
    return {name: found for name, found in modules if isinstance(found, LoweredLayer)}


def facts(network: nn.Module, layers: Mapping[str, LoweredLayer]) -> dict[str, Any]:
    """Return, as plain data, what a network's graphs do not say; see ``trace_checkpoint``."""
    traits = traits_of(network)
    return {
        "exact": is_exact(layers),
        "arch_options": dict(traits.arch_options),
        "input_range": traits.input_range,
    }


def is_exact(layers: Mapping[str, LoweredLayer]) -> bool:
    """Return whether a network with these layers has to match the reference in all operations."""
    return not layers or not all(layer.folded for layer in layers.values())


def rearranged(
    model: openvino.Model, layers: Mapping[str, LoweredLayer], lowering: Lowering
) -> openvino.Model:
    """Change a lowered network's model, in place, to a faster form, and return it."""
    folded = {name for name, layer in layers.items() if layer.folded}
    merge_upsampling(model, folded, lowering.largest)
    if not is_exact(layers):
        spread_group_norms(model)
    return model


def save(model: openvino.Model, path: Path) -> None:
    """Write ``path``, an .xml file, and its weights beside it."""
    openvino.save_model(model, path, compress_to_fp16=False)
    keep_in_float32(path)


def converted(
    part: Part, inputs: tuple[Tensor, ...], other: tuple[Tensor, ...] | None, path: Path
) -> openvino.Model:
    """Return OpenVINO's representation of a part, for inputs of any size that the network takes.

    Args:
        inputs, other, path: see ``traced``.

    Raises:
        QuantFaceError: see ``traced``; or OpenVINO lacks an operator.
    """
    graph = traced(part, inputs, other, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return openvino.convert_model(graph, example_input=inputs)
        except Exception as error:
            detail = str(error).strip().splitlines()[-1:]
            raise QuantFaceError(
                f"{path}: {type(part.network).__name__}.{part.name} cannot be compiled by OpenVINO "
                f"({''.join(detail)}); choose the runtime reference"
            ) from error
