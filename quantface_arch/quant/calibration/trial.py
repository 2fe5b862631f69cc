"""Measure the error of a layer's output with a balancing or a branch, before it is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from quantface_arch.quant.config.specs import MAX_BITS, QuantSpec
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.lowrank import svd_factors
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point

__all__ = ["best_factors", "output_error", "output_errors"]

# The full search of range ``mse`` would be slow for every candidate. While candidates are compared,
# the activation grid is tried at these fractions of the range only.
CLIPS = (1.0, 0.7, 0.45)
# For the same reason, one in this many fractions of the weight's range is tried.
COARSE = 6
# Candidates are compared on about this many output channels. Wider layers use every second, third,
# ... channel.
OUTPUTS = 256


def output_error(layer: QuantLayer, samples: Tensor, balance: LayerBalance, rank: int) -> float:
    """Return the mean squared error of a layer's output, see ``output_errors``."""
    return output_errors(layer, samples, balance, rank, [layer.activation_spec.bits])[0]


@torch.no_grad()
def output_errors(
    layer: QuantLayer, samples: Tensor, balance: LayerBalance, rank: int, widths: Sequence[int]
) -> list[float]:
    """Return the mean squared error of a layer's output on samples, for bit widths of the input.

    For wide layers, it is measured on some evenly spaced output channels only. Runtimes do not
    rotate inputs of 8 bits, see ``runtime.lowering``, so those are rounded before they are rotated.

    Args:
        layer: neither balanced nor quantized yet; it is not changed.
        samples: float (crops, ...), inputs before balancing.
        balance: the balancing to try.
        rank: rank of the SVD branch that the layer will have.
        widths: bit widths of the input; the weight has the layer's own.
    """
    samples = samples.to(layer.weight.device)
    trial = _copy(layer)
    trial.apply_balance(balance)
    x = trial.balance_input(samples)
    every = 1
    if layer.groups == 1:
        trial.add_branch(rank, 0)
        every = max(1, len(layer.weight) // OUTPUTS)
        _thin_out(trial, every)
    wanted = _round_weight(trial, x, layer.product(samples, layer.weight[::every], None))
    errors = []
    for bits in widths:
        spec = trial.activation_spec = layer.activation_spec.with_bits(bits)
        rotated_later = bits == MAX_BITS and not spec.dynamic and bool(trial.balance.segments)
        rounded = (
            _rounded_before_rotation(trial, samples) if rotated_later else _rounded_inputs(trial, x)
        )
        errors.append(_least_error(trial, wanted, rounded))
    return errors


@torch.no_grad()
def best_factors(
    layer: QuantLayer, rank: int, iterations: int, samples: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the SVD branch's factors after several rounds of L_k = SVD(W − Q(W − L_{k−1})).

    The rounds end at the first that does not lower the output's error (SVDQuant, Li et al., 2025).

    Args:
        layer: balanced, not quantized yet; it is not changed.
        samples: float (crops, ...), balanced inputs; not read if there is only one round.

    Returns:
        down and up; None if there is only one round, which takes the weight's own singular vectors.
    """
    if iterations == 1 or not rank:
        return None
    samples = samples.to(layer.weight.device)
    wanted = layer.product(samples, layer.weight, None)
    factors, least = svd_factors(layer.weight, rank), float("inf")
    best = factors
    for _ in range(iterations):
        trial = _copy(layer)
        trial.add_branch(rank, 0, factors=factors)
        rest = _round_weight(trial, samples, wanted)
        error = _least_error(trial, rest, _rounded_inputs(trial, samples))
        if error >= least:
            break
        best, least = factors, error
        factors = svd_factors(layer.weight - trial.weight, rank)
    return best


def _copy(layer: QuantLayer) -> QuantLayer:
    """Return an unbalanced layer that shares this one's weight and has the same bit widths."""
    return type(layer).from_float(layer, layer.weight_spec, layer.activation_spec, layer.name)


def _thin_out(trial: QuantLayer, every: int) -> None:
    """Keep one output channel in ``every`` of a layer that is not quantized yet."""
    trial.weight = nn.Parameter(trial.weight[::every], requires_grad=False)
    # There is one scale per output channel, or a single one, which the slice keeps.
    trial.weight_scale = trial.weight_scale[::every]
    trial.weight_zero_point = trial.weight_zero_point[::every]
    if trial.branch_down is not None and trial.branch_up is not None:
        trial.set_branch(trial.branch_down, trial.branch_up[::every])


def _round_weight(trial: QuantLayer, x: Tensor, wanted: Tensor) -> Tensor:
    """Round the trial's weight, and return the output that is wanted of it alone.

    Args:
        x: balanced inputs.
        wanted: the layer's output without quantization and bias.
    """
    if trial.rank:
        wanted = wanted - trial.branch(x)
    mean_square = x.movedim(trial.channel_axis, 0).flatten(1).square().mean(1)
    trial.quantize_weight(mean_square, COARSE)
    return wanted


def _least_error(trial: QuantLayer, wanted: Tensor, rounded: Iterable[Tensor]) -> float:
    """Return the mean squared error of the output of a trial's rounded weight.

    Args:
        rounded: the balanced inputs after rounding, for each range; the best one counts.
    """
    return min(
        float((trial.product(inputs, trial.weight, None) - wanted).square().mean())
        for inputs in rounded
    )


def _rounded_inputs(trial: QuantLayer, x: Tensor) -> Iterator[Tensor]:
    """Yield balanced inputs rounded to each range that their quantizer may end up with."""
    for low, high in _trial_ranges(x, trial.activation_spec):
        trial.set_activation_range(low, high)
        yield trial.quantize_input(x)


def _rounded_before_rotation(trial: QuantLayer, samples: Tensor) -> Iterator[Tensor]:
    """Yield inputs that are rounded first and balanced then."""
    for low, high in _trial_ranges(samples, trial.activation_spec):
        step, zero = scale_and_zero_point(
            torch.tensor(low), torch.tensor(high), MAX_BITS, symmetric=False
        )
        qmin, qmax = grid(MAX_BITS, symmetric=False)
        step, zero = step.to(samples), zero.to(samples)
        yield trial.balance_input(fake_quantize(samples, step, zero, qmin, qmax))


def _trial_ranges(x: Tensor, spec: QuantSpec) -> list[tuple[float, float]]:
    """Return the ranges of balanced inputs that a quantizer of this spec may end up with."""
    if spec.range == "percentile" and not spec.dynamic:
        keep = spec.percentile / 100
        # We use float64, because float32 cannot index a quantile among many values exactly.
        values = x.flatten().double()
        if spec.symmetric:
            high = float(values.abs().quantile(keep))
            return [(-high, high)]
        return [(float(values.quantile(1 - keep)), float(values.quantile(keep)))]
    low, high = float(x.min()), float(x.max())
    searched = spec.range == "mse" and not spec.dynamic
    return [(low * clip, high * clip) for clip in (CLIPS if searched else (1.0,))]
