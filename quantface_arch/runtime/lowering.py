"""Quantized layers rewritten in the few operators that compilers turn into integer arithmetic.

A lowered layer rounds its input by torch's own fake quantization to 256 levels and multiplies by
int8 weights that are scaled per output channel. There are two ways:

- *faithful*: what the reference computes, operation by operation. Inputs of fewer bits are clamped
  to their range before, since compilers know no other number of levels.
- *folded*: residual, branch and inverse balancing are multiplied out into one weight, which is
  rounded again, and the input is rounded as it arrives. Balancing and branch cost nothing then. For
  inputs of 8 bits, where this second rounding is far below the first one, to 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.quant.config.specs import MAX_BITS
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.hadamard import Segments, hadamard
from quantface_arch.quant.ops.lowrank import low_rank_weight
from quantface_arch.quant.ops.quantizer import grid, quantize, scale_and_zero_point

__all__ = ["FULL", "MODES", "SPARE", "LoweredLayer", "Lowering", "folded_weight"]

MODES = ("auto", "faithful", "folded")
# (input, weight, bias) → a layer's output.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# Largest integer of a weight; and the same with a bit to spare, for processors that sum pairs of
# products in 16 bits, which 8-bit weights overflow.
FULL, SPARE = 127, 63


@dataclass(frozen=True)
class Lowering:
    """How layers are lowered.

    Attributes:
        mode: ``faithful``, ``folded``, or ``auto``: folded where the input has 8 bits.
        largest: ``FULL`` or ``SPARE``. A faithful weight whose integers do not fit, or that has
            several steps per output channel, is rounded again, too.

    Raises:
        QuantFaceError: no such mode.
    """

    mode: str = "auto"
    largest: int = FULL

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)

    def __call__(self, layer: QuantLayer) -> LoweredLayer:
        """Lower a layer, which must be quantized.

        Raises:
            QuantFaceError: the layer has what only the reference can do.
        """
        for what, found in (
            ("input ranges that are found anew for every image", layer.activation_spec.dynamic),
            ("learned input offsets", layer.act_offset is not None),
        ):
            if found:
                raise QuantFaceError(
                    f"layer {layer.name}: {what} cannot be compiled; choose the runtime reference"
                )
        eight = layer.activation_spec.bits == MAX_BITS
        return LoweredLayer(layer, eight if self.mode == "auto" else self.mode == "folded", self)


class LoweredLayer(nn.Module):
    """An integer product and, where faithful, balancing before it and a branch beside it.

    ``geometry`` is a layer of the same kernel, stride and padding, which has no tensors.
    """

    geometry: QuantLayer
    multiplier: Tensor | None
    branch_down: Tensor | None
    branch_up: Tensor | None

    def __init__(self, layer: QuantLayer, folded: bool, lowering: Lowering) -> None:
        super().__init__()
        self.folded = folded
        balanced = not folded and layer.balance.kind != "none"
        multiplier = layer.balance_multiplier if balanced else None
        shape = (-1, *[1] * (-1 - layer.channel_axis))
        self.register_buffer("multiplier", None if multiplier is None else multiplier.view(shape))
        segments = layer.balance.segments if balanced else ()
        self.rotation = Rotation(segments, layer.channel_axis) if segments else None
        geometry = _geometry(layer)
        # Not as a submodule: it has no state.
        vars(self)["geometry"] = geometry
        self.integer = IntegerProduct(geometry.product, layer, folded, lowering.largest)
        self.low_rank_product = geometry.low_rank_product
        for name in ("branch_down", "branch_up"):
            self.register_parameter(name, None if folded else getattr(layer, name))

    def forward(self, x: Tensor) -> Tensor:
        """As the quantized layer."""
        if self.multiplier is not None:
            x = x * self.multiplier
        if self.rotation is not None:
            x = self.rotation(x)
        y = self.integer(x)
        if self.branch_down is None or self.branch_up is None:
            return y
        return y + self.low_rank_product(x, self.branch_down, self.branch_up)


class IntegerProduct(nn.Module):
    """What must become integer arithmetic; compilers' names of it end in this module's, integer.

    Buffers: ``weight`` int8, ``weight_scale`` float32, (Cout, 1, ...). The input's ``levels`` are
    those that are meant of the compiler's 256, ``limits``.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, product: Product, layer: QuantLayer, folded: bool, largest: int) -> None:
        super().__init__()
        self.product = product
        self.bias = layer.bias
        self.input_scale, self.zero_point, self.limits, self.levels = _input_grid(layer, folded)
        integers, scale = _integers(layer, folded, largest)
        self.register_buffer("weight", integers)
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Round the input, multiply."""
        if self.levels != self.limits:
            x = x.clamp(*((level - self.zero_point) * self.input_scale for level in self.levels))
        x = torch.fake_quantize_per_tensor_affine(
            x, self.input_scale, self.zero_point, *self.limits
        )
        return self.product(x, self.weight.float() * self.weight_scale, self.bias)


class Rotation(nn.Module):
    """x H as matrix products whose traces hold for inputs of any size; see ``hadamard.rotate``."""

    def __init__(self, segments: Segments, channel_axis: int) -> None:
        super().__init__()
        self.taps = -1 - channel_axis
        self.widths = [count * size for count, size in segments]
        self.counts = [count for count, _ in segments]
        for place, (count, size) in enumerate(segments):
            matrix = hadamard(size) * size**-0.5
            if self.taps:
                # As a convolution's weight, whose rows are outputs.
                matrix = matrix.T.repeat(count, 1).view(count * size, size, *[1] * self.taps)
            self.register_buffer(f"matrix_{place}", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., Cin) or (N, Cin, ...), rotated."""
        parts = x.split(self.widths, dim=-1 - self.taps)
        rotated = [self._rotate(part, place) for place, part in enumerate(parts)]
        return rotated[0] if len(rotated) == 1 else torch.cat(rotated, dim=-1 - self.taps)

    def _rotate(self, x: Tensor, place: int) -> Tensor:
        matrix, count = getattr(self, f"matrix_{place}"), self.counts[place]
        if self.taps:
            return (F.conv1d, F.conv2d)[self.taps - 1](x, matrix, groups=count)
        return (x.unflatten(-1, (count, -1)) @ matrix).flatten(-2)


def _geometry(layer: QuantLayer) -> QuantLayer:
    """A layer that multiplies like this one and has no tensors, which would be kept alive."""
    geometry = type(layer).empty_like(layer)
    geometry._parameters.clear()
    return geometry


def _input_grid(
    layer: QuantLayer, folded: bool
) -> tuple[float, int, tuple[int, int], tuple[int, int]]:
    """Step, zero point, the compiler's 256 levels, and those of them that are meant."""
    if folded:
        step, zero = scale_and_zero_point(layer.act_low, layer.act_high, MAX_BITS, False)
        return float(step), int(zero), (0, 255), (0, 255)
    spec = layer.activation_spec
    step, zero = float(layer.act_scale), int(layer.act_zero_point)
    limits = (-128, 127) if spec.symmetric else (0, 255)
    return step, zero, limits, grid(spec.bits, spec.symmetric)


def folded_weight(layer: QuantLayer) -> Tensor:
    """The one weight that a layer's residual, branch and balancing come to, float, of its shape."""
    weight = layer.weight.detach()
    if layer.branch_down is not None and layer.branch_up is not None:
        weight = weight + low_rank_weight(layer.branch_down.detach(), layer.branch_up.detach())
    if layer.balance.kind == "none":
        return weight
    return layer.balance.weight(weight, layer.groups, inverse=True)


def _integers(layer: QuantLayer, folded: bool, largest: int) -> tuple[Tensor, Tensor]:
    """A weight as int8 and the scale of each output channel."""
    spec = layer.weight_spec
    weight = folded_weight(layer) if folded else layer.weight.detach()
    rows = (-1, *[1] * (weight.ndim - 1))
    if not folded and spec.granularity in ("channel", "tensor"):
        scale, zero = (layer.per_weight(x) for x in (layer.weight_scale, layer.weight_zero_point))
        integers = quantize(weight, scale, zero, *grid(spec.bits, spec.symmetric)) - zero.int()
        if int(integers.abs().max()) <= largest:
            return integers.to(torch.int8), scale.expand(len(weight), *[1] * (weight.ndim - 1))
    scale = weight.flatten(1).abs().amax(1).float() / largest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).view(rows)
    return (weight / scale).round().to(torch.int8), scale
