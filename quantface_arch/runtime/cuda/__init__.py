"""The runtime for NVIDIA GPUs: Triton kernels multiply int8 on tensor cores. Experimental."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from quantface_arch.quant.checkpoint.builder import Build
    from quantface_arch.runtime.timing import LayerTimer

__all__ = ["layer_timer", "load", "missing"]

# Ampere has this compute capability. It is the first generation that has bfloat16 and on which
# Triton multiplies int8.
CAPABILITY = (8, 0)


def missing() -> str | None:
    """Return None if the kernels can be compiled and run, else an install hint."""
    if not find_spec("triton"):
        return "pip install triton"
    import torch

    wanted = ".".join(map(str, CAPABILITY))
    if not torch.cuda.is_available():
        return f"it needs an NVIDIA GPU of compute capability {wanted} or more, none was found"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"it needs compute capability {wanted} or more, found {found[0]}.{found[1]}"
    return None


def load(path: Path, build: Build, mode: str = "auto") -> nn.Module:
    """Load a float or quantized checkpoint for execution by Triton's kernels, on the current GPU.

    Everything except the sums of layers and norms is computed in bfloat16. Each of the methods that
    the network's trait ``parts`` names is compiled and run as one CUDA graph. The first image of a
    shape takes minutes for that. The graphs of the last two shapes are kept. Layers that the
    kernels cannot compute, such as grouped convolutions, are left to torch, and a warning names
    them.

    Args:
        build: see ``load_checkpoint``.
        mode: the mode of the layers, see ``runtime_names.MODES``.

    Raises:
        QuantFaceError: see ``load_checkpoint`` and ``Lowering``.
    """
    import torch

    from quantface_arch.runtime.cuda.network import load_network

    return load_network(path, build, mode, torch.device("cuda"))


def layer_timer() -> LayerTimer:
    """Return how the current GPU times a single layer."""
    from quantface_arch.runtime.cuda import isolated

    return isolated.layer_timer()
