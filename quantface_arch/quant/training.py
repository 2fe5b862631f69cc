"""What is trained of a quantized model, and how trained ranges become fixed ones again."""

from __future__ import annotations

import torch
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.layers import State, quant_layers

__all__ = ["settle", "trainable"]


def trainable(model: nn.Module, bounds: bool = False) -> list[nn.Parameter]:
    """Let gradients reach the branches of a quantized model, and nothing else of it.

    Args:
        bounds: also the two ends of every activation's range, in the logarithm.

    Returns:
        the parameters to train, in the order of the layers.

    Raises:
        QuantFaceError: a layer is not quantized yet, or there is nothing to train.
    """
    model.requires_grad_(False)
    chosen: list[nn.Parameter] = []
    for layer in quant_layers(model):
        if layer.state is not State.QUANTIZED:
            raise QuantFaceError(
                f"layer {layer.name}: found state {layer.state.value}, only quantized is trained"
            )
        if bounds and layer.act_bounds is None:
            zeros = torch.zeros(2, device=layer.act_scale.device)
            layer.act_bounds = nn.Parameter(zeros)
        own = (layer.branch_down, layer.branch_up, layer.act_bounds if bounds else None)
        chosen += [value for value in own if isinstance(value, nn.Parameter)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    if not chosen:
        raise QuantFaceError("training: the model has no branches; give its recipe a branch rank")
    return chosen


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Make the trained ends of the activations' ranges their grids: the outputs stay the same."""
    for layer in quant_layers(model):
        if layer.act_bounds is not None:
            scale, zero_point = layer.input_grid()
            layer.act_scale.copy_(scale)
            layer.act_zero_point.copy_(zero_point)
            layer.act_bounds = None
