"""Quantized layers rewritten in the few operators that compilers turn into integer arithmetic.

A lowered layer rounds its input to 256 levels by torch's own fake quantization. It multiplies by
int8 weights that are scaled per output channel. There are two modes:

- *faithful* computes what the reference computes, operation by operation. Compilers know no number
  of levels other than 256, so inputs with fewer bits are first clamped to their range.
- *folded* multiplies residual, branch and inverse rotation into one weight and rounds that weight
  again. An input of 8 bits keeps the scales of its channels, which compilers merge into its
  quantizer; otherwise, it is rounded without balancing. Balancing and branch then cost nothing.
  This mode suits inputs of 8 bits, where the second rounding adds far less error than the first
  one, which is to 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.specs import MAX_BITS, ROTATED
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.hadamard import Segments, hadamard
from quantface_arch.quant.ops.lowrank import low_rank_weight
from quantface_arch.quant.ops.quantizer import grid, quantize, scale_and_zero_point
from quantface_arch.runtime.processor import FULL
from quantface_arch.utils.runtime_names import MODES

__all__ = ["LoweredLayer", "Lowering", "folded_weight", "work"]

# A product maps (input, weight, bias) to the output of a layer.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# An end of a layer's levels: a number, or float32 (Cin,).
Level = int | Tensor
# Of 256 levels from 0, this one stands for zero where channels have their own zero points.
MIDDLE = 128


@dataclass(frozen=True)
class Lowering:
    """The settings by which layers are lowered.

    Attributes:
        mode: ``faithful``, ``folded``, or ``auto``, which folds layers whose input has 8 bits.
        largest: the largest integer of a weight, ``processor.FULL`` or ``processor.SPARE``. A
            faithful weight is rounded again if its integers do not fit, or if it has several scales
            per output channel.

    Raises:
        QuantFaceError: there is no such mode.
    """

    mode: str = "auto"
    largest: int = FULL

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)

    def __call__(self, layer: QuantLayer) -> LoweredLayer:
        """Lower a quantized layer.

        Raises:
            QuantFaceError: the layer uses a feature that only the reference supports.
        """
        if layer.activation_spec.dynamic:
            raise QuantFaceError(
                f"layer {layer.name}: input ranges that are computed anew for every image cannot "
                "be compiled; choose the runtime reference"
            )
        eight = layer.activation_spec.bits == MAX_BITS
        return LoweredLayer(layer, eight if self.mode == "auto" else self.mode == "folded", self)


def work(choice: LayerChoice) -> tuple[int, int, int, int]:
    """Return how much of each kind of work a choice adds to the product of a layer.

    The kinds are: rounding to fewer than 256 levels, scales or signs, rotations, ranks. Every
    weight is int8, so its bit width adds nothing.
    """
    kind = choice.balance or "none"
    if choice.activation_bits == MAX_BITS:
        return 0, int(kind == "scale"), 0, 0
    return 1, int(kind != "none"), int(kind in ROTATED), choice.rank or 0


class LoweredLayer(nn.Module):
    """An integer product; a faithful one has balancing before it and a branch beside it.

    A folded one has at most the scales of its input before it.

    ``geometry`` is a layer with the same kernel, stride and padding, but without tensors.
    """

    geometry: QuantLayer
    multiplier: Tensor | None
    branch_down: Tensor | None
    branch_up: Tensor | None

    def __init__(self, layer: QuantLayer, folded: bool, lowering: Lowering) -> None:
        super().__init__()
        self.folded = folded
        balanced = _is_scaled(layer) if folded else layer.balance.kind != "none"
        multiplier = layer.balance_multiplier if balanced else None
        shape = (-1, *[1] * (-1 - layer.channel_axis))
        self.register_buffer("multiplier", None if multiplier is None else multiplier.view(shape))
        segments = layer.balance.segments if balanced else ()
        regular = layer.balance.regular
        self.rotation = Rotation(segments, layer.channel_axis, regular) if segments else None
        geometry = _geometry(layer)
        # The geometry has no state, so it is not registered as a submodule.
        vars(self)["geometry"] = geometry
        self.integer = IntegerProduct(geometry.product, layer, folded, lowering.largest)
        self.low_rank_product = geometry.low_rank_product
        for name in ("branch_down", "branch_up"):
            self.register_parameter(name, None if folded else getattr(layer, name))

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the quantized layer computes."""
        if self.multiplier is not None:
            x = x * self.multiplier
        if self.rotation is not None:
            x = self.rotation(x)
        y = self.integer(x)
        if self.branch_down is None or self.branch_up is None:
            return y
        return y + self.low_rank_product(x, self.branch_down, self.branch_up)


class IntegerProduct(nn.Module):
    """The product that must become integer arithmetic.

    Compilers keep the name of this module: the names of its operators end in ``integer``. It has
    the buffers ``weight``, int8, and ``weight_scale``, float32 (Cout, 1, ...). ``limits`` are the
    ends of the compiler's 256 levels; ``levels`` are the ends of those that the layer uses, numbers
    or float32 (Cin,). In the latter case ``low`` and ``high`` are the values of these ends.
    """

    weight: Tensor
    weight_scale: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(self, product: Product, layer: QuantLayer, folded: bool, largest: int) -> None:
        super().__init__()
        self.product = product
        self.bias = layer.bias
        self.input_scale, self.zero_point, self.limits, self.levels = _input_grid(layer, folded)
        integers, scale = _integers(layer, folded, largest)
        self.register_buffer("weight", integers)
        self.register_buffer("weight_scale", scale)
        low, high = ((level - self.zero_point) * self.input_scale for level in self.levels)
        self.ends = None
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            self.register_buffer("low", layer.per_channel(low))
            self.register_buffer("high", layer.per_channel(high))
        else:
            self.low = self.high = None
            self.ends = None if self.levels == self.limits else (float(low), float(high))

    def forward(self, x: Tensor) -> Tensor:
        """Round the input and multiply."""
        if self.low is not None and self.high is not None:
            x = torch.minimum(torch.maximum(x, self.low), self.high)
        elif self.ends is not None:
            x = x.clamp(*self.ends)
        x = torch.fake_quantize_per_tensor_affine(
            x, self.input_scale, self.zero_point, *self.limits
        )
        return self.product(x, self.weight.float() * self.weight_scale, self.bias)


class Rotation(nn.Module):
    """x H as matrix products that can be traced for inputs of any size; see ``hadamard.rotate``."""

    def __init__(self, segments: Segments, channel_axis: int, regular: bool = False) -> None:
        super().__init__()
        self.taps = -1 - channel_axis
        self.widths = [count * size for count, size in segments]
        self.counts = [count for count, _ in segments]
        for place, (count, size) in enumerate(segments):
            matrix = hadamard(size, regular) * size**-0.5
            if self.taps:
                # The rows of a convolution's weight are its outputs, so the matrix is transposed.
                matrix = matrix.T.repeat(count, 1).view(count * size, size, *[1] * self.taps)
            self.register_buffer(f"matrix_{place}", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x (..., Cin) or (N, Cin, ...)."""
        parts = x.split(self.widths, dim=-1 - self.taps)
        rotated = [self._rotate(part, place) for place, part in enumerate(parts)]
        return rotated[0] if len(rotated) == 1 else torch.cat(rotated, dim=-1 - self.taps)

    def _rotate(self, x: Tensor, place: int) -> Tensor:
        matrix, count = getattr(self, f"matrix_{place}"), self.counts[place]
        if self.taps:
            return (F.conv1d, F.conv2d)[self.taps - 1](x, matrix, groups=count)
        return (x.unflatten(-1, (count, -1)) @ matrix).flatten(-2)


def _geometry(layer: QuantLayer) -> QuantLayer:
    """Return a layer that multiplies like this one, without its tensors, which would stay alive."""
    geometry = type(layer).empty_like(layer)
    geometry._parameters.clear()
    return geometry


def _input_grid(
    layer: QuantLayer, folded: bool
) -> tuple[float, int, tuple[int, int], tuple[Level, Level]]:
    """Return scale, zero point, and the ends of the compiler's 256 levels and of those in use.

    If channels have their own zero points, the compiler's is in the middle, and each channel uses
    levels of its own.
    """
    if folded and not _is_scaled(layer):
        step, zero = scale_and_zero_point(layer.act_low, layer.act_high, MAX_BITS, False)
        return float(step), int(zero), (0, 255), (0, 255)
    spec = layer.activation_spec
    step, levels = float(layer.act_scale), grid(spec.bits, spec.symmetric)
    if spec.has_channel_zero_points:
        low, high = (MIDDLE + level - layer.act_zero_point for level in levels)
        return step, MIDDLE, (0, 255), (low, high)
    limits = (-128, 127) if spec.symmetric else (0, 255)
    return step, int(layer.act_zero_point), limits, levels


def _is_scaled(layer: QuantLayer) -> bool:
    """Return whether a folded layer keeps the scales of its input, on the layer's own grid."""
    return layer.balance.kind == "scale" and layer.activation_spec.bits == MAX_BITS


def folded_weight(layer: QuantLayer, scaled: bool = False) -> Tensor:
    """Return the float weight that combines a layer's residual, branch and balancing.

    Args:
        scaled: whether the input keeps its scales, so that the weight must not undo them.
    """
    weight = layer.weight.detach()
    if layer.branch_down is not None and layer.branch_up is not None:
        weight = weight + low_rank_weight(layer.branch_down.detach(), layer.branch_up.detach())
    if scaled or layer.balance.kind == "none":
        return weight
    return layer.balance.weight(weight, layer.groups, inverse=True)


def _integers(layer: QuantLayer, folded: bool, largest: int) -> tuple[Tensor, Tensor]:
    """Return a layer's weight as int8, and the scale of each output channel."""
    spec = layer.weight_spec
    weight = folded_weight(layer, _is_scaled(layer)) if folded else layer.weight.detach()
    rows = (-1, *[1] * (weight.ndim - 1))
    if not folded and spec.granularity in ("channel", "tensor"):
        scale, zero = (layer.per_weight(x) for x in (layer.weight_scale, layer.weight_zero_point))
        integers = quantize(weight, scale, zero, *grid(spec.bits, spec.symmetric)) - zero.int()
        if int(integers.abs().max()) <= largest:
            return integers.to(torch.int8), scale.expand(len(weight), *[1] * (weight.ndim - 1))
    scale = weight.flatten(1).abs().amax(1).float() / largest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).view(rows)
    return (weight / scale).round().to(torch.int8), scale
