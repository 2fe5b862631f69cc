"""Quantized layers: torch's own, with a quantizer on the weight and one on the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.quantizer import fake_quantize, grid, scale_and_zero_point
from quantface_arch.quant.ranges import weight_range
from quantface_arch.quant.specs import QuantSpec

__all__ = ["QuantConv1d", "QuantConv2d", "QuantLayer", "QuantLinear", "State", "quant_layers"]

Layer = TypeVar("Layer", bound="QuantLayer")


class State(Enum):
    """Lifecycle of a layer and of a model: float → calibrating → quantized."""

    FLOAT = "float"
    CALIBRATING = "calibrating"
    QUANTIZED = "quantized"


class QuantLayer(nn.Module):
    """What quantized layers have in common; stands before torch's class among the bases.

    ``weight`` and ``bias`` keep their names and, once quantized, ``weight`` holds the values that
    its integers read back as, so that the layer runs as torch's own does (simulated: low-bit values
    in floating point, no speed-up). Buffers, float32:

    - ``weight_scale``, ``weight_zero_point``: (Cout,) or (1,), of the weight's grid.
    - ``act_scale``, ``act_zero_point``: scalars, of the grid of the input.
    - ``act_low``, ``act_high``: scalars, range of the layer's input as it arrives.

    ``observer``, when set, is shown every input and the layer computes in floating point.
    """

    name: str
    weight_spec: QuantSpec
    activation_spec: QuantSpec
    state: State
    observer: Callable[[Tensor], None] | None
    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor
    act_scale: Tensor
    act_zero_point: Tensor
    act_low: Tensor
    act_high: Tensor
    # Axis of the input that holds its channels, counted from the end so that batches may be absent.
    channel_axis: int

    @classmethod
    def empty_like(cls: type[Layer], module: Any) -> Layer:
        """A layer of a float layer's geometry whose parameters hold no memory."""
        raise NotImplementedError

    @classmethod
    def from_float(
        cls: type[Layer],
        module: nn.Module,
        weights: QuantSpec,
        activations: QuantSpec,
        name: str,
    ) -> Layer:
        """The quantized counterpart, not calibrated yet, of a float layer.

        It takes over the layer's parameters themselves, not copies.

        Args:
            name: what messages call the layer.
        """
        layer = cls.empty_like(module)
        layer.weight, layer.bias = module.weight, module.bias  # type: ignore[assignment]
        layer.name, layer.weight_spec, layer.activation_spec = name, weights, activations
        layer.state, layer.observer = State.CALIBRATING, None
        channels = layer.weight.shape[0] if weights.granularity == "channel" else 1
        for buffer, shape in (("weight_scale", (channels,)), ("act_scale", ())):
            layer.register_buffer(buffer, torch.ones(shape, device=layer.weight.device))
        layer.register_buffer("weight_zero_point", torch.zeros_like(layer.weight_scale))
        for buffer in ("act_zero_point", "act_low", "act_high"):
            layer.register_buffer(buffer, torch.zeros_like(layer.act_scale))
        return layer.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        """As torch's layer, on the quantized input.

        Raises:
            QuantFaceError: the layer is not calibrated.
        """
        if self.observer is not None:
            self.observer(input)
            return super().forward(input)
        if self.state is State.FLOAT:
            return super().forward(input)
        if self.state is State.CALIBRATING:
            raise QuantFaceError(
                f"layer {self.name}: not calibrated; run the model inside calibrating(model), "
                "then apply(), before using it"
            )
        return super().forward(self.quantize_input(input))

    def quantize_input(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the layer's input, with straight-through gradients."""
        qmin, qmax = grid(self.activation_spec.bits, self.activation_spec.symmetric)
        return fake_quantize(x, self.act_scale, self.act_zero_point, qmin, qmax)

    def per_weight(self, values: Tensor) -> Tensor:
        """``weight_scale`` or ``weight_zero_point``, shaped to broadcast against the weight."""
        return values.view(-1, *[1] * (self.weight.ndim - 1))

    @torch.no_grad()
    def quantize_weight(self) -> None:
        """Find the weight's range and replace the weight by its values on the grid.

        The float parameter that was taken over stays as it was; the new one needs no gradient.
        """
        spec = self.weight_spec
        low, high = weight_range(self.weight, spec)
        scale, zero_point = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
        self.weight_scale.copy_(scale)
        self.weight_zero_point.copy_(zero_point)
        rounded = fake_quantize(
            self.weight,
            self.per_weight(self.weight_scale),
            self.per_weight(self.weight_zero_point),
            *grid(spec.bits, spec.symmetric),
        )
        self.weight = nn.Parameter(rounded, requires_grad=False)

    @torch.no_grad()
    def set_activation_range(self, low: float, high: float) -> None:
        """Fix the grid of the layer's input from the range that it is to cover."""
        spec = self.activation_spec
        self.act_low.fill_(low)
        self.act_high.fill_(high)
        scale, zero_point = scale_and_zero_point(
            self.act_low, self.act_high, spec.bits, spec.symmetric
        )
        self.act_scale.copy_(scale)
        self.act_zero_point.copy_(zero_point)

    def get_extra_state(self) -> Tensor:
        """State and widths, uint8 (3,): a tensor, so that ``state_dict`` holds tensors only."""
        place = list(State).index(self.state)
        bits = (self.weight_spec.bits, self.activation_spec.bits)
        return torch.tensor((place, *bits), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the state over.

        Raises:
            QuantFaceError: it was saved from a layer of other widths.
        """
        place, *found = state.tolist()
        wanted = [self.weight_spec.bits, self.activation_spec.bits]
        if found != wanted:
            raise QuantFaceError(
                f"layer {self.name}: found weights and inputs of {found} bits, wanted are {wanted}"
            )
        self.state = list(State)[place]
        if self.state is State.QUANTIZED:
            self.weight.requires_grad_(False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "act_scale" not in state_dict:
            # Weights of the float network: everything else stays, but calibration is void.
            self.state = State.CALIBRATING
            for key, value in self.named_buffers(recurse=False):
                state_dict[prefix + key] = value
            state_dict[prefix + "_extra_state"] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """torch's description, then the widths and the state."""
        bits = f"w{self.weight_spec.bits}a{self.activation_spec.bits}"
        return f"{super().extra_repr()}, {bits}, {self.state.value}"


class QuantLinear(QuantLayer, nn.Linear):
    """Quantized ``nn.Linear``: x (..., Cin) → (..., Cout)."""

    channel_axis = -1

    @classmethod
    def empty_like(cls, module: nn.Linear) -> QuantLinear:
        return cls(
            module.in_features, module.out_features, bias=module.bias is not None, device="meta"
        )


def _conv_geometry(module: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    options = {name: getattr(module, name) for name in (*names, "groups", "padding_mode")}
    return {**options, "bias": module.bias is not None, "device": "meta"}


class QuantConv1d(QuantLayer, nn.Conv1d):
    """Quantized ``nn.Conv1d``: x (N, Cin, L) or (Cin, L), any padding, stride, dilation, groups."""

    channel_axis = -2

    @classmethod
    def empty_like(cls, module: nn.Conv1d) -> QuantConv1d:
        return cls(**_conv_geometry(module))


class QuantConv2d(QuantLayer, nn.Conv2d):
    """Quantized ``nn.Conv2d``: x (N, Cin, H, W) or (Cin, H, W), any padding, stride, ..."""

    channel_axis = -3

    @classmethod
    def empty_like(cls, module: nn.Conv2d) -> QuantConv2d:
        return cls(**_conv_geometry(module))


def quant_layers(model: nn.Module) -> Iterator[QuantLayer]:
    """All quantized layers of a model, in the order of registration, each once."""
    return (module for module in model.modules() if isinstance(module, QuantLayer))
