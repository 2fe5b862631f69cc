"""A lowered layer whose product the kernels compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.quant.nn.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quantface_arch.runtime.cuda import ops
from quantface_arch.runtime.lowering import LoweredLayer

__all__ = ["LONGEST", "CudaLayer", "SingleLayer", "obstacle"]

# If a convolution has fewer input channels than this, its taps become channels, which are padded to
# a multiple of this. Tensor cores need at least that many channels.
NARROW = 16

# The sum of this many products of an 8-bit level and an 8-bit weight always fits into 32 bits.
LONGEST = 2**31 // (255 * 128)


def obstacle(layer: LoweredLayer) -> str | None:
    """Return the feature of a layer that the kernels do not support; None if there is none."""
    geometry = layer.geometry
    if not isinstance(geometry, QuantLinear | QuantConv1d | QuantConv2d):
        return f"type {type(geometry).__name__}"
    if geometry.groups > 1:
        return f"{geometry.groups} groups"
    if not isinstance(geometry, QuantLinear) and geometry.padding_mode != "zeros":
        return f"padding mode {geometry.padding_mode}"
    if layer.integer.weight[0].numel() > LONGEST:
        return f"sums of more than {LONGEST} products"
    return None


class SingleLayer(nn.Module):
    """A lowered layer that torch computes in single precision, for inputs of any dtype."""

    def __init__(self, lowered: LoweredLayer) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, x: Tensor) -> Tensor:
        """Compute the lowered layer; the result has x's dtype."""
        return self.lowered(x.float()).to(x.dtype)


class CudaLayer(nn.Module):
    """A layer y = input_scale·weight_scale·((q - zero) Wᵀ) + bias, plus a faithful branch.

    Integers are summed exactly in 32 bits. Scale and bias are applied in float32, and the result is
    rounded to the input's dtype. A weight whose integers fit into four bits is stored in four bits.
    Diagonal balancing is part of the rounding and of the branch's first factor. Before a rotation
    it is a separate product.

    Args:
        lowered: a layer for which ``obstacle`` returns None. Its rotation is reused.
        dtype: the type of inputs, rotation and branch.
    """

    geometry: QuantLayer
    inverse_scale: Tensor
    stored_zero: Tensor
    low: Tensor
    high: Tensor
    multiplier: Tensor | None
    before: Tensor | None
    weight: Tensor
    scale: Tensor
    correction: Tensor
    bias: Tensor | None
    branch_down: Tensor | None
    branch_up: Tensor | None

    def __init__(self, lowered: LoweredLayer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        integer = lowered.integer
        # The geometry has no state, so it is not registered as a submodule.
        vars(self)["geometry"] = lowered.geometry
        self.window, self.padding = _window(lowered.geometry)
        self.taps = -1 - lowered.geometry.channel_axis
        # A level less this offset is the int8 number that stores the level.
        offset = integer.limits[0] + 128
        zero = integer.zero_point - offset
        self._keep("stored_zero", torch.tensor(zero), torch.float32)
        self._keep("inverse_scale", torch.tensor(integer.input_scale).reciprocal(), torch.float32)
        for name, level in zip(("low", "high"), integer.levels, strict=True):
            self._keep(name, torch.as_tensor(level - offset), torch.float32)
        rotated, multiplier = lowered.rotation is not None, lowered.multiplier
        self.rotation = None if lowered.rotation is None else lowered.rotation.to(dtype)
        self._keep("before", multiplier if rotated else None, dtype)
        fused = None if rotated else multiplier
        self._keep("multiplier", None if fused is None else fused.flatten(), torch.float32)
        down = lowered.branch_down
        self._keep("branch_down", down if down is None or fused is None else down * fused, dtype)
        self._keep("branch_up", lowered.branch_up, dtype)
        weight = integer.weight.flatten(1).view(*integer.weight.shape[:2], -1).movedim(1, -1)
        self._keep("correction", weight.sum((1, 2)) * zero, torch.int32)
        self.gathered = weight.shape[1] > 1 and weight.shape[2] < NARROW
        if self.gathered:
            weight = weight.flatten(1).unsqueeze(1)
            weight = F.pad(weight, (0, -weight.shape[2] % NARROW))
        least, most = ops.NIBBLE
        fits = bool(weight.min() >= least and weight.max() <= most)
        self.packed = fits and not self.gathered
        stored = ops.pack_nibbles(weight) if self.packed else weight.contiguous()
        self._keep("weight", stored, torch.int8)
        self._keep("scale", integer.weight_scale.flatten() * integer.input_scale, torch.float32)
        self._keep("bias", integer.bias, torch.float32)

    def _keep(self, name: str, value: Tensor | None, dtype: torch.dtype) -> None:
        self.register_buffer(name, None if value is None else value.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the lowered layer in x's dtype; images come out channels-last in memory."""
        if self.before is not None:
            x = x * self.before
        if self.rotation is not None:
            x = self.rotation(x)
        y = self.product(x)
        if self.branch_down is None or self.branch_up is None:
            return y
        return y + self.geometry.low_rank_product(x, self.branch_down, self.branch_up)

    def product(self, x: Tensor) -> Tensor:
        """Return the integer product of the rounded x, plus the bias."""
        integers = ops.Integers(self.weight, self.packed, self.scale, self.correction, self.bias)
        if self.window is None:
            return ops.matmul(self.levels(x, -1), integers, x.dtype)
        images = x if x.ndim == self.taps + 2 else x[None]
        images = images if self.taps == 2 else images.unsqueeze(2)
        levels, window = self._padded_levels(images), self.window
        if self.gathered:
            levels, window = ops.gather_taps(levels, window, self.weight.shape[-1]), ops.Window()
        y = ops.conv2d(levels, integers, x.dtype, window)
        y = y if self.taps == 2 else y.squeeze(2)
        return y if x.ndim == y.ndim else y[0]

    def _padded_levels(self, images: Tensor) -> Tensor:
        """Return the stored levels of images (N, C, H, W), padded with zeros, channels last."""
        if self.low.ndim:
            # The zero point is 0, but not every channel's levels include it.
            return F.pad(self.levels(images, 1), [0, 0, *self.padding])
        # Pad before rounding, so that the padding becomes the zero point.
        return self.levels(F.pad(images, self.padding), 1)

    def levels(self, x: Tensor, channel_axis: int) -> Tensor:
        """Return the stored levels of x, channels last; see ``ops.quantize``."""
        ends = self.low, self.high
        rounding = self.inverse_scale, self.stored_zero
        return ops.quantize(x, channel_axis, self.multiplier, *rounding, *ends)


def _window(layer: QuantLayer) -> tuple[ops.Window | None, list[int]]:
    """Return a convolution's taps, None for a linear layer, and its padding for ``F.pad``."""
    if not isinstance(layer, QuantConv1d | QuantConv2d):
        return None, []
    # torch also resolves padding that is given as a string. The order is left, right and, for
    # images, top, bottom.
    padding = list(layer._reversed_padding_repeated_twice)
    sizes = (layer.kernel_size, layer.stride, layer.dilation)
    kernel, stride, dilation = ((1, *size)[-2:] for size in sizes)
    return ops.Window(kernel, stride, dilation), padding
