"""Select a quantized model's parameters to train, and fold the trained ones into plain layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.quant.finetune.weight_trainers import WEIGHT_TRAINERS
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers
from quantface_arch.quant.ops.lowrank import low_rank_weight

__all__ = ["BOUNDS", "fold_trained", "trainable"]

# Training may leave activation ranges alone, change both of their ends, or only their scale.
BOUNDS = (False, True, "step")


def trainable(
    model: nn.Module,
    bounds: bool | str = False,
    weights: str | None = None,
    teacher: nn.Module | None = None,
) -> list[nn.Parameter]:
    """Enable gradients for the branches of a quantized model and for the other parameters given.

    Args:
        bounds: True also trains the two ends of every fixed activation range, in the logarithm
            (LSQ+), or its scale and the zero points of its channels; ``step`` trains only its scale
            (LSQ).
        weights: also train the rounded weights by one of ``WEIGHT_TRAINERS``: ``rounding``
            (AdaRound), ``merged`` (a low-rank change that is rounded with the weight), ``scale``
            (a learned scale of each input channel).
        teacher: the float network that the model was made from, which ``weights`` needs.

    Returns:
        the parameters to train, in the order of the layers.

    Raises:
        QuantFaceError: a layer is not quantized, or nothing can be trained.
    """
    if bounds not in BOUNDS:
        raise QuantFaceError(f"bounds: found {bounds!r}, allowed are false, true and step")
    if weights is not None:
        check_choice("weights", weights, WEIGHT_TRAINERS)
    model.requires_grad_(False)
    chosen: list[nn.Parameter] = []
    for layer in quant_layers(model):
        _check_quantized(layer)
        if weights is not None:
            assert teacher is not None
            residual = _residual(layer, teacher.get_submodule(layer.name))
            layer.tuner = WEIGHT_TRAINERS[weights](layer, residual)
        chosen += _parameters(layer, bounds)
    for parameter in chosen:
        parameter.requires_grad_(True)
    if not chosen:
        raise QuantFaceError("training: the model has no branches; give its recipe a branch rank")
    return chosen


def _check_quantized(layer: QuantLayer) -> None:
    if layer.state is not State.QUANTIZED:
        raise QuantFaceError(
            f"layer {layer.name}: found state {layer.state.value}, expected quantized"
        )


def _parameters(layer: QuantLayer, bounds: bool | str) -> list[nn.Parameter]:
    """Return a layer's parameters to train; new bounds start at 0, which changes nothing."""
    if bounds and not layer.activation_spec.dynamic and layer.act_bounds is None:
        ends = 1 + layer.channels if layer.activation_spec.has_channel_zero_points else 2
        zeros = torch.zeros(1 if bounds == "step" else ends, device=layer.act_scale.device)
        layer.act_bounds = nn.Parameter(zeros)
    own = [layer.branch_down, layer.branch_up, layer.act_bounds if bounds else None]
    if layer.tuner is not None:
        own += layer.tuner.parameters()
    return [value for value in own if isinstance(value, nn.Parameter)]


@torch.no_grad()
def _residual(layer: QuantLayer, original: nn.Module) -> Tensor:
    """Return the weight before rounding: the float layer's, balanced, without the branch."""
    assert isinstance(original.weight, Tensor)
    weight = original.weight.detach()
    if layer.balance.kind != "none":
        weight = layer.balance.weight(weight, layer.groups)
    if layer.branch_down is None or layer.branch_up is None:
        return weight.clone()
    return weight - low_rank_weight(layer.branch_down, layer.branch_up)


@torch.no_grad()
def fold_trained(model: nn.Module) -> None:
    """Fold trained ranges, branches and weights into plain layers; the outputs stay the same."""
    for layer in quant_layers(model):
        if layer.act_bounds is not None:
            layer.set_input_grid(*layer.input_grid())
            layer.act_bounds = None
        layer.round_branch()
        if layer.tuner is not None:
            tuner, layer.tuner = layer.tuner, None
            tuner.fold_trained(layer)
