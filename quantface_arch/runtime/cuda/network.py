"""A network whose quantized layers the kernels execute."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.nn.convert import replace_module
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.cuda.graph import GraphedPart
from quantface_arch.runtime.cuda.layer import CudaLayer, SingleLayer, obstacle
from quantface_arch.runtime.cuda.norm import FusibleGroupNorm
from quantface_arch.runtime.lowering import LoweredLayer, Lowering
from quantface_arch.runtime.parts import lowered_network

__all__ = ["load_network", "with_kernels"]


@torch.no_grad()
def load_network(
    path: Path,
    build: Build,
    mode: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> nn.Module:
    """Load a network; see ``quantface_arch.runtime.cuda.load`` and ``with_kernels``."""
    # Layers are lowered before the kernels take them, so that constants are computed here, on the
    # CPU.
    network = lowered_network(path, build, Lowering(mode))
    left = with_kernels(network, device, dtype)
    if left:
        warnings.warn(
            f"{path}: layers that the kernels cannot compute are left to torch, in float32: "
            f"{', '.join(left)}",
            stacklevel=3,
        )
    return network


@torch.no_grad()
def with_kernels(network: nn.Module, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Have the kernels compute a lowered network's layers and norms, in place.

    Args:
        device: on any device other than CUDA nothing is compiled, and the kernels run only in
            Triton's interpreter.
        dtype: the type of everything except the layers' sums. Every GPU on which the kernels run
            has bfloat16.

    Returns:
        the layers that are left to torch, with the reasons.
    """
    left = []
    for name, module in list(network.named_modules()):
        if isinstance(module, LoweredLayer):
            reason = obstacle(module)
            if reason is not None:
                left.append(f"{name} ({reason})")
            made = CudaLayer(module, dtype) if reason is None else SingleLayer(module)
            replace_module(network, module, made)
        elif isinstance(module, nn.GroupNorm):
            replace_module(network, module, FusibleGroupNorm(module))
    _cast(network, dtype)
    # No overload in torch's annotations has both a device and a memory format.
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for name in traits_of(network).parts:
        # An instance attribute takes precedence over the method of the class.
        part = GraphedPart(name, getattr(network, name), dtype, device.type == "cuda")
        vars(network)[name] = part
    return left


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's floating-point tensors, except those of layers and norms."""
    for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    for child in module.children():
        if not isinstance(child, CudaLayer | SingleLayer | FusibleGroupNorm):
            _cast(child, dtype)
