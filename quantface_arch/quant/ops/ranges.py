"""Find the range that a grid covers: a weight's from its values, an input's from a histogram.

A weight is searched as rows of values that share a scale, see ``QuantSpec.granularity``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point

__all__ = ["SHRINKS", "histogram_range", "per_weight", "step_rows", "steps_shape", "weight_range"]

# A search tries these fractions of the full range: 1.00, 0.99, ..., 0.21.
SHRINKS = tuple(1 - 0.01 * step for step in range(80))
# A search works on about this many elements at a time, so that they fit into a core's cache.
CHUNK = 2**18


def steps_shape(weight: Tensor, spec: QuantSpec) -> tuple[int, ...]:
    """Return the shape of a weight's scales.

    It is (1,), (Cout,), or (Cout, groups of input channels, *taps).
    """
    rows, channels, *taps = weight.shape
    groups = -(-channels // spec.group)
    return {"tensor": (1,), "channel": (rows,), "group": (rows, groups, *taps)}[spec.granularity]


def per_weight(steps: Tensor, weight: Tensor, spec: QuantSpec) -> Tensor:
    """Reshape scales of ``steps_shape`` so that they broadcast against the weight."""
    if spec.granularity == "group":
        return steps.repeat_interleave(spec.group, 1)[:, : weight.shape[1]]
    return steps.view(-1, *[1] * (weight.ndim - 1))


def step_rows(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Return the values that share a scale as one row each, in the order of the scales.

    Incomplete groups are padded with 0.
    """
    if spec.granularity != "group":
        return weight.reshape(weight.shape[0] if spec.granularity == "channel" else 1, -1)
    fill = -weight.shape[1] % spec.group
    filled = F.pad(weight, (*[0, 0] * (weight.ndim - 2), 0, fill))
    return filled.unflatten(1, (-1, spec.group)).movedim(2, -1).reshape(-1, spec.group)


def weight_range(
    weight: Tensor, spec: QuantSpec, importance: Tensor | None = None, every: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the ranges of a weight, one for all values that share a scale.

    Args:
        weight: float (Cout, Cin, ...), finite.
        spec: the quantizer's spec; ``mse`` searches at its bit width.
        importance: float (Cin,), mean square of each input channel. If the spec is ``weighted``,
            ``mse`` weights the error of each value by it, so that the search minimizes the error of
            the layer's output. None weights all channels alike.
        every: ``mse`` tries one in this many fractions, for a quicker and coarser search.

    Returns:
        low and high, float32, of ``steps_shape``.
    """
    rows = step_rows(weight.detach().float(), spec)
    if spec.range == "percentile":
        low, high = _row_percentiles(rows, spec)
    else:
        low, high = rows.amin(1), rows.amax(1)
    if spec.range == "mse":
        cost = None
        if importance is not None and spec.weighted:
            columns = importance.to(rows).view(-1, *[1] * (weight.ndim - 2))
            cost = step_rows(columns.expand(1, *weight.shape[1:]), spec)
            copies = weight.numel() // weight[0].numel()
            grouped = spec.granularity == "group"
            cost = cost.repeat(copies, 1) if grouped else cost[0].repeat(copies // len(rows))
        fraction = _search_rows(rows, low, high, spec, cost, SHRINKS[::every])
        low, high = low * fraction, high * fraction
    shape = steps_shape(weight, spec)
    return low.view(shape), high.view(shape)


def _row_percentiles(rows: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    keep = spec.percentile / 100
    last = rows.shape[1] - 1
    if spec.symmetric:
        high = rows.abs().sort(dim=1).values[:, round(keep * last)]
        return -high, high
    ordered = rows.sort(dim=1).values
    return ordered[:, round((1 - keep) * last)], ordered[:, round(keep * last)]


def _search_rows(
    rows: Tensor,
    low: Tensor,
    high: Tensor,
    spec: QuantSpec,
    cost: Tensor | None,
    fractions: tuple[float, ...],
) -> Tensor:
    """Return the fraction of each row's range with the least error, weighted by ``cost``.

    ``cost`` is one row for all rows, (columns,), or one row for each, (rows, columns).
    """
    qmin, qmax = grid(spec.bits, spec.symmetric)
    best_fraction = torch.ones_like(low)
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        chunk, least = rows[part], torch.full_like(low[part], torch.inf)
        for fraction in fractions:
            scale, zero = scale_and_zero_point(
                low[part] * fraction, high[part] * fraction, spec.bits, spec.symmetric
            )
            rounded = fake_quantize(chunk, scale[:, None], zero[:, None], qmin, qmax)
            errors = _powered(rounded.sub_(chunk), spec.power)
            if cost is None:
                error = errors.sum(1)
            else:
                error = errors @ cost if cost.ndim == 1 else (errors * cost[part]).sum(1)
            better = error < least
            least = torch.where(better, error, least)
            best_fraction[part] = torch.where(better, fraction, best_fraction[part])
    return best_fraction


def histogram_range(
    counts: Tensor, reach: float, low: float, high: float, spec: QuantSpec
) -> tuple[float, float]:
    """Return the range of an input from the histogram of its values.

    Args:
        counts: int64 (bins,), an even number of equal bins over [-reach, reach].
        reach: outer edge of the histogram, > 0.
        low, high: the smallest and the largest value that were seen, or their moving averages.
        spec: the quantizer's spec; ``mse`` searches at its bit width.

    Returns:
        low and high, for the whole tensor.
    """
    if spec.range in ("minmax", "ema") or not bool(counts.any()):
        return low, high
    width = 2 * reach / counts.numel()
    filled = counts.nonzero().squeeze(1)
    values = ((filled + (0.5 - counts.numel() / 2)) * width).clamp(low, high)
    weights = counts[filled].double()
    if spec.range == "percentile":
        return _histogram_percentiles(values, weights, spec)
    return _search_histogram(values, weights, low, high, spec)


def _histogram_percentiles(values: Tensor, weights: Tensor, spec: QuantSpec) -> tuple[float, float]:
    keep = spec.percentile / 100
    if spec.symmetric:
        values, order = values.abs().sort()
        weights = weights[order]
    share = weights.cumsum(0) / weights.sum()
    last = values.numel() - 1
    upper = float(values[int(torch.searchsorted(share, keep).clamp(max=last))])
    if spec.symmetric:
        return -upper, upper
    return float(values[int(torch.searchsorted(share, 1 - keep).clamp(max=last))]), upper


def _search_histogram(
    values: Tensor, weights: Tensor, low: float, high: float, spec: QuantSpec
) -> tuple[float, float]:
    """Shrink both ends together, then each alone, to clip a one-sided tail on its side only."""
    low, high = _least_error(values, weights, [(low * f, high * f) for f in SHRINKS], spec)
    if not spec.symmetric:
        low, high = _least_error(values, weights, [(low, high * f) for f in SHRINKS], spec)
        low, high = _least_error(values, weights, [(low * f, high) for f in SHRINKS], spec)
    return low, high


def _least_error(
    values: Tensor, weights: Tensor, candidates: list[tuple[float, float]], spec: QuantSpec
) -> tuple[float, float]:
    qmin, qmax = grid(spec.bits, spec.symmetric)
    ends = torch.tensor(candidates, dtype=torch.float32, device=values.device)
    scale, zero = scale_and_zero_point(ends[:, 0], ends[:, 1], spec.bits, spec.symmetric)
    rounded = fake_quantize(
        values.expand(len(candidates), -1), scale[:, None], zero[:, None], qmin, qmax
    )
    errors = _powered((rounded - values).double(), spec.power) @ weights
    return candidates[int(errors.argmin())]


def _powered(error: Tensor, power: float) -> Tensor:
    """Return |error|^power, computed in place."""
    return error.square_() if power == 2 else error.abs_().pow_(power)
