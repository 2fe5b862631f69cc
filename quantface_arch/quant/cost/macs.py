"""Count a network's multiply-accumulates: those of its layers, and those outside of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quantface_arch.quant.nn.own_macs import own_macs

__all__ = ["LAYERS", "LayerWork", "count_macs", "count_products", "count_work"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LayerWork:
    """The work of a layer in one pass of the network, summed over all runs of the layer.

    Attributes:
        macs: number of multiply-accumulates.
        inputs: number of values of its input.
        shapes: shape of its input, for every run.
    """

    macs: int = 0
    inputs: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


def count_work(model: nn.Module, x: Tensor) -> dict[str, LayerWork]:
    """Return the work of every linear layer and convolution, quantized or not, in one pass.

    On the meta device, nothing is computed, and networks of any size take a second. Biases, norms
    and the products inside attention are left out, because bit widths do not change them.

    Args:
        x: float (N, 3, H, W), the network's input; counts are of the whole batch.

    Returns:
        layer → its work, in the order in which the layers first ran; layers that never ran are left
        out.
    """
    found: dict[str, LayerWork] = {}

    def count(name: str, layer: Any, x: Tensor, output: Any) -> None:
        per_value = layer.weight.numel() // layer.weight.shape[0]
        before = found.get(name, LayerWork())
        macs = before.macs + output.numel() * per_value
        shapes = (*before.shapes, tuple(x.shape))
        found[name] = LayerWork(macs, before.inputs + x.numel(), shapes)

    handles = [
        module.register_forward_hook(lambda m, xs, out, name=name: count(name, m, xs[0], out))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def count_macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return only the multiply-accumulates of ``count_work``, by layer."""
    return {name: work.macs for name, work in count_work(model, x).items()}


def count_products(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates outside of layers, such as those of attention.

    Args:
        x: see ``count_work``.

    Returns:
        module whose own code multiplies → multiply-accumulates; modules without any are left out.
    """
    # We select this kernel, because others of attention are not counted, or not on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x)
    layers = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}
    return {name: macs for name, macs in own_macs(model, counter).items() if name not in layers}
