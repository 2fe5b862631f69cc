"""Restorers as networks on arrays. A compiled one needs no torch.

torch is imported to compile what is not on disk yet, and for all other runtimes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch import runtime as runtimes
from quantface_arch.archs.array_network import ArrayForward, ArrayNetwork, array_network
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.utils.installation import need

if TYPE_CHECKING:
    from torch import nn

    from quantface_arch.runtime.openvino.compiled_parts import Tracer

__all__ = ["MODE", "as_array_network", "load_compiled", "load_on_arrays", "tracer_of"]

COMPILING = "openvino"
# The mode of the layers, see ``runtime_names.MODES``.
MODE = "auto"
# What quantface export writes for OpenVINO.
EXPORTED = ".xml"


def load_on_arrays(
    name_or_path: str | os.PathLike[str],
    runtime: str = "auto",
    device: str = "cpu",
    base: str | None = None,
    offline: bool = False,
) -> ArrayNetwork:
    """Load a restorer as a network on arrays.

    Args:
        name_or_path, runtime, device, base, offline: see ``load_model``.

    Raises:
        QuantFaceError: see ``load_model``; or what it needs of the full installation is missing.
    """
    path = resolve_model(name_or_path)
    what = str(path)
    if not path.is_dir():
        chosen = runtimes.resolve(runtime, runtimes.device_type(device))
        if chosen == COMPILING:
            return load_compiled(path)
        if path.suffix == EXPORTED:
            raise QuantFaceError(
                f"{path}: found runtime {chosen}, only {COMPILING} runs .xml files; "
                "give --device cpu"
            )
        what = f"{path} in the runtime {chosen}"
    need(what)
    from quantface_arch.pretrained.zoo import load_model

    return as_array_network(load_model(path, runtime, device, base, offline), device)


def as_array_network(network: ArrayNetwork | nn.Module, device: str = "cpu") -> ArrayNetwork:
    """Return a network on arrays as it is, and a torch module as one that runs on a device."""
    if isinstance(network, ArrayNetwork):
        return network
    from quantface_arch.archs.torch_network import TorchNetwork

    return TorchNetwork(network, device)


def load_compiled(path: Path) -> ArrayNetwork:
    """Load a network for execution by OpenVINO on the CPU.

    Args:
        path: a checkpoint, another project's weights, or an exported network (.xml).

    Raises:
        QuantFaceError: see ``runtime.openvino.load`` and ``as_checkpoint``; or the graphs are not
            on disk yet, and torch is missing.
    """
    from quantface_arch.runtime.openvino.compiled_parts import load_exported, load_parts

    if path.suffix == EXPORTED:
        found = load_exported(path)
        return ArrayForward(found.parts, found.arch_options, found.input_range)
    found = load_parts(path, MODE, lambda: tracer_of(path))
    return array_network(found.parts, found.arch_options, found.input_range)


def tracer_of(path: Path) -> Tracer:
    """Return what traces the graphs of a file of weights.

    Raises:
        QuantFaceError: torch is missing, or see ``as_checkpoint``.
    """
    need(f"{path}, which is not compiled yet")
    from quantface_arch.archs.build import ARCH_BUILDER
    from quantface_arch.pretrained.foreign import as_checkpoint
    from quantface_arch.runtime.openvino.network import tracer

    return tracer(as_checkpoint(path), ARCH_BUILDER.full, MODE)
