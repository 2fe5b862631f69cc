"""Read a checkpoint's tensors into a model without trusting any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.branches import fill_branch
from quantface_arch.quant.checkpoint.metadata import Metadata
from quantface_arch.quant.nn.convert import replace_module
from quantface_arch.quant.nn.layers import QuantLayer, State
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.channel_grid import zero_point_limits
from quantface_arch.quant.ops.packing import packed_size, unpack
from quantface_arch.quant.ops.quantizer import dequantize, grid

__all__ = ["ACTIVATIONS", "Lower", "Reader"]

Lower = Callable[[QuantLayer], nn.Module]

# The tensor with this key holds the activation range of every layer.
ACTIVATIONS = "activations"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Reader:
    """Fills a model from an open checkpoint, checking every tensor before it is used.

    Args:
        path: the checkpoint's path, for messages.
        file: safetensors' handle.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.file = file
        self.keys = set(file.keys())
        self.used: set[str] = set()

    @torch.no_grad()
    def fill(
        self,
        model: nn.Module,
        metadata: Metadata,
        float_parts: Mapping[str, Tensor],
        lower: Lower | None = None,
    ) -> None:
        """Fill a converted model with the tensors of the file.

        Args:
            float_parts: the model's tensors that are stored in floating point, by key.
            lower: called with each layer as soon as it is filled; the module that it returns
                replaces the layer.

        Raises:
            QuantFaceError: a tensor is missing, unexpected, or not what the model needs.
        """
        order = list(metadata.bits)
        for name, value in float_parts.items():
            allowed = FLOATS if value.is_floating_point() else (value.dtype,)
            value.copy_(self.read(name, tuple(value.shape), allowed))
        if order:
            table = self.read(ACTIVATIONS, (len(order), 4), (torch.float32,))
            for name, row in zip(order, table, strict=True):
                layer = model.get_submodule(name)
                assert isinstance(layer, QuantLayer)
                self.fill_balance(name, layer, metadata.balance.get(name))
                self.fill_weight(name, layer)
                self.fill_activation(name, layer, row)
                fill_branch(self, name, layer)
                if lower is not None:
                    replace_module(model, layer, lower(layer))
        extra = sorted(self.keys - self.used)
        if extra:
            raise self.error(extra[0], "found in the file, but the architecture has no such tensor")

    def read(self, key: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Tensor:
        if key not in self.keys:
            raise self.error(key, "not found in the file, but the architecture needs it")
        self.used.add(key)
        value = self.file.get_tensor(key)
        if tuple(value.shape) != shape or value.dtype not in dtypes:
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            raise self.error(
                key, f"found {value.dtype} {tuple(value.shape)}, expected {wanted} {shape}"
            )
        return value

    def fill_balance(self, name: str, layer: QuantLayer, options: object) -> None:
        key = f"{name}.balance_scale"
        scale = None
        if key in self.keys:
            scale = self.read(key, (layer.channels,), (torch.float32,))
        if options is not None:
            try:
                layer.set_balance(LayerBalance.from_dict(name, options, scale))
            except QuantFaceError as error:
                raise QuantFaceError(f"{self.path}: metadata balance: {error}") from None
        elif scale is not None:
            raise self.error(key, "found, but the metadata says that the layer is not balanced")

    def fill_weight(self, name: str, layer: QuantLayer) -> None:
        spec, key = layer.weight_spec, f"{name}.weight"
        shape = tuple(layer.weight_scale.shape)
        scale = self.read(f"{key}_scale", shape, (torch.float32,))
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise self.error(f"{key}_scale", "found a scale that is not positive and finite")
        zero = torch.zeros_like(scale)
        qmin, qmax = grid(spec.bits, spec.symmetric)
        if not spec.symmetric:
            zero = self.read(f"{key}_zero_point", shape, (torch.uint8,)).float()
            if bool((zero > qmax).any()):
                raise self.error(f"{key}_zero_point", f"found a value above {qmax}")
        count = layer.weight.numel()
        packed = self.read(key, (packed_size(count, spec.bits),), (torch.uint8,))
        integers = unpack(packed, spec.bits, count).view(layer.weight.shape).int() + qmin
        if int(integers.max()) > qmax:
            raise self.error(key, f"found an integer above the grid's largest, {qmax}")
        layer.weight_scale.copy_(scale)
        layer.weight_zero_point.copy_(zero)
        values = dequantize(integers, layer.per_weight(scale), layer.per_weight(zero))
        layer.weight = nn.Parameter(values, requires_grad=False)
        layer.state = State.QUANTIZED

    def fill_activation(self, name: str, layer: QuantLayer, row: Tensor) -> None:
        scale, zero, low, high = (float(value) for value in row)
        qmin, qmax = grid(layer.activation_spec.bits, layer.activation_spec.symmetric)
        finite = bool(row.isfinite().all())
        if not finite or scale <= 0 or zero != round(zero) or not qmin <= zero <= qmax:
            raise self.error(ACTIVATIONS, f"layer {name}: found {row.tolist()}, not a valid grid")
        if low > high:
            raise self.error(ACTIVATIONS, f"layer {name}: found a range from {low} to {high}")
        zeros = row[1]
        if layer.activation_spec.has_channel_zero_points:
            zeros = self.zero_points(name, layer)
        layer.set_input_grid(row[0], zeros)
        layer.act_low.copy_(row[2])
        layer.act_high.copy_(row[3])

    def zero_points(self, name: str, layer: QuantLayer) -> Tensor:
        key, bits = f"{name}.act_zero_point", layer.activation_spec.bits
        zeros = self.read(key, layer.zero_points_shape, (torch.int8,))
        least, most = zero_point_limits(bits)
        if bool((zeros < least).any() or (zeros > most).any()):
            raise self.error(key, f"found a zero point that is not in [{least}, {most}]")
        return zeros

    def error(self, key: str, what: str) -> QuantFaceError:
        return QuantFaceError(f"{self.path}: key {key}: {what}")
