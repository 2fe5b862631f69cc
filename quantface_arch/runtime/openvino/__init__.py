"""The runtime for CPUs: OpenVINO computes int8 products, compiled once per machine."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from quantface_arch.quant.checkpoint.builder import Build
    from quantface_arch.runtime.timing import LayerTimer

__all__ = ["layer_timer", "load", "missing"]

# OpenVINO reports its import over the network unless this package cannot be found. None in
# ``sys.modules`` prevents an import, but typeshed's annotation knows only modules.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]


def missing() -> str | None:
    """Return None if OpenVINO is installed, else an install hint."""
    return None if find_spec("openvino") else "pip install openvino"


def load(path: Path, build: Build, mode: str = "auto") -> nn.Module:
    """Load a float or quantized checkpoint for execution by OpenVINO.

    The slow work is done once and kept on disk, see ``disk_cache``. Each of the methods that the
    network's trait ``parts`` names is compiled by itself. Images may have any size and number, but
    each combination has to be compiled.

    Args:
        build: see ``load_checkpoint``. Given a ``Builder``, the full network is built only to
            compile it, and this process keeps the shell.
        mode: the mode of the layers, see ``runtime_names.MODES``.

    Raises:
        QuantFaceError: see ``load_checkpoint`` and ``Lowering``; or OpenVINO cannot compile the
            network.
    """
    from quantface_arch.quant.checkpoint.builder import Builder
    from quantface_arch.runtime.openvino.network import load_network

    return load_network(path, Builder.of(build), mode)


def layer_timer() -> LayerTimer:
    """Return how OpenVINO times a single layer."""
    from quantface_arch.runtime.openvino import isolated

    return isolated.layer_timer()
