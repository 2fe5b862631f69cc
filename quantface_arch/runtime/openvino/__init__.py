"""Checkpoints on a CPU through OpenVINO: int8 products, compiled once for a machine."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from quantface_arch.quant.checkpoint.builder import Build, Builder

__all__ = ["load", "missing"]

# When it is imported, OpenVINO reports that over the network, unless it finds no such package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def missing() -> str | None:
    """None where OpenVINO is installed."""
    return None if find_spec("openvino") else "pip install openvino"


def load(path: Path, build: Build, mode: str = "auto") -> nn.Module:
    """Load a float or quantized checkpoint for execution by OpenVINO.

    What is slow is done once and kept in the cache folder, see ``cache``. A network that names
    methods in an attribute ``parts`` has each of them compiled by itself, others their ``forward``;
    images may have any size and number, each combination costs a compilation.

    Args:
        build: see ``load_checkpoint``; if it has an attribute ``pipeline``, a function alike that
            leaves out what the parts compute, the whole network is built for compiling alone.
        mode: of the layers, see ``lowering.MODES``.

    Raises:
        QuantFaceError: see ``load_checkpoint`` and ``Lowering``; OpenVINO cannot compile it.
    """
    from quantface_arch.runtime.openvino.network import load_network

    return load_network(path, Builder.of(build), mode)
