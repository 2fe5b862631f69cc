"""Multiply-accumulates of a network's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["count_macs"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def count_macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every linear layer and convolution, quantized or not, in one pass.

    Biases, norms and the products inside attention are left out: no layer's widths change those.

    Args:
        x: float (N, 3, H, W), the network's input; counts are of the whole batch.

    Returns:
        layer → multiply-accumulates, in the order in which the layers first ran; a layer that ran
        several times counts all of them, one that never ran is left out.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: Any, output: Any) -> None:
        per_value = layer.weight.numel() // layer.weight.shape[0]
        counts[name] = counts.get(name, 0) + output.numel() * per_value

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: count(name, m, out))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return counts
