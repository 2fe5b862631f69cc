"""Quantized linear and convolution layers, each derived from torch's own class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.quant.nn.layer import QuantLayer
from quantface_arch.quant.nn.layer_state import State

__all__ = ["QuantConv1d", "QuantConv2d", "QuantLayer", "QuantLinear", "State", "quant_layers"]


class QuantLinear(QuantLayer, nn.Linear):
    """Quantized ``nn.Linear``: x (..., Cin) → (..., Cout)."""

    channel_axis = -1

    @classmethod
    def geometry(cls, module: nn.Linear) -> dict[str, Any]:
        names = ("in_features", "out_features")
        options = {name: getattr(module, name) for name in names}
        return {**options, "bias": module.bias is not None}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def columns(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])


class _QuantConv(QuantLayer):
    """The base class of quantized convolutions with any number of dimensions."""

    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def geometry(cls, module: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        options = {name: getattr(module, name) for name in (*names, "groups", "padding_mode")}
        return {**options, "bias": module.bias is not None}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """Quantized ``nn.Conv1d``: x (N, Cin, L) or (Cin, L), any padding, stride, dilation, groups."""

    channel_axis = -2

    def columns(self, x: Tensor) -> Tensor:
        return _windows(x.unsqueeze(-2), (1, *self.kernel_size), (1, *self.dilation))


class QuantConv2d(_QuantConv, nn.Conv2d):
    """Quantized ``nn.Conv2d``: x (N, Cin, H, W) or (Cin, H, W), any padding, stride, ..."""

    channel_axis = -3

    def columns(self, x: Tensor) -> Tensor:
        return _windows(x, self.kernel_size, self.dilation)


def _windows(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Return what a kernel covers at each position within x; a smaller x is padded with zeros."""
    x = x.unsqueeze(0) if x.ndim == 3 else x
    spans = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    height, width = (max(0, span - side) for span, side in zip(spans, x.shape[-2:], strict=True))
    x = F.pad(x, (0, width, 0, height))
    return F.unfold(x, kernel, dilation).movedim(1, -1).flatten(0, 1)


def quant_layers(model: nn.Module) -> Iterator[QuantLayer]:
    """Return all quantized layers of a model, each once, in the order of registration."""
    return (module for module in model.modules() if isinstance(module, QuantLayer))
