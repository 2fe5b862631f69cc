"""How large a checkpoint will be."""

from __future__ import annotations

from torch import nn

from quantface_arch.quant.layers import quant_layers
from quantface_arch.quant.lowrank import branch_parameters
from quantface_arch.quant.recipe import Recipe
from quantface_arch.quant.selection import branch_ranks

__all__ = ["fixed_bytes"]

# Per layer: four activation numbers, names and offsets of its tensors, its entries in the metadata.
LAYER_BYTES = 500


def fixed_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Estimated bytes of a checkpoint beside its packed weights, which the widths do not change.

    Scales, of balancing too if there is any, the branches that the recipe adds, and 16 bits for all
    that stays in floating point.

    Args:
        model: converted, not quantized yet.
    """
    layers = list(quant_layers(model))
    weights = {layer.name: layer.weight for layer in layers}
    ranks = branch_ranks(model, recipe.branch)
    branches = sum(branch_parameters(weights[name], sum(rank)) for name, rank in ranks.items())
    floats = sum(value.numel() for value in model.parameters())
    floats -= sum(weight.numel() for weight in weights.values())
    scales = sum(layer.weight_scale.numel() for layer in layers)
    if recipe.balance.wanted:
        scales += sum(layer.channels for layer in layers)
    return 2 * (floats + branches) + 4 * scales + LAYER_BYTES * len(layers)
