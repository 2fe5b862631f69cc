"""Measure how branches and balancing change the error of a layer's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.calibration.selection import choose
from quantface_arch.quant.calibration.trial import output_errors
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.balance import LayerBalance

__all__ = ["relative_errors"]

# An input that is rounded without any error has this one.
TINY = torch.finfo().tiny


def relative_errors(
    layer: QuantLayer,
    observer: ActivationObserver,
    recipe: Recipe,
    sources: tuple[int, ...],
    base: tuple[LayerBalance, int],
    choices: Sequence[LayerChoice],
) -> dict[LayerChoice, float]:
    """Return the error of a layer's output with each choice, relative to ``base``.

    A kind of balancing has the exponents that are best at the layer's own bit widths.

    Args:
        layer: neither balanced nor quantized yet; it is not changed.
        observer: statistics of its input, with samples.
        recipe: gives the quantizers and the way of balancing.
        sources: channels of each part of a concatenated input.
        base: the balancing and the rank of branch 1 in relation to which errors are measured.
        choices: what to measure.
    """
    balances = {
        kind: choose(layer, observer, recipe.balance.offering(kind), sources, 0)
        for kind in dict.fromkeys(choice.balance or "none" for choice in choices)
    }
    inputs = list(dict.fromkeys(choice.activation_bits for choice in choices))
    found: dict[LayerChoice, float] = {}
    for bits in dict.fromkeys(choice.weight_bits for choice in choices):
        weights = layer.weight_spec.with_bits(bits)
        trial = type(layer).from_float(layer, weights, layer.activation_spec, layer.name)
        wholes = output_errors(trial, observer.samples, *base, inputs)
        whole = dict(zip(inputs, wholes, strict=True))
        alike: dict[tuple[int | None, str | None], list[LayerChoice]] = {}
        for choice in choices:
            if choice.weight_bits == bits:
                alike.setdefault((choice.rank, choice.balance), []).append(choice)
        for (rank, kind), group in alike.items():
            svd, _ = recipe.branch.split(rank or 0)
            widths = [choice.activation_bits for choice in group]
            errors = output_errors(trial, observer.samples, balances[kind or "none"], svd, widths)
            for choice, error in zip(group, errors, strict=True):
                found[choice] = error / max(whole[choice.activation_bits], TINY)
    return found
