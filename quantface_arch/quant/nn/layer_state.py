"""The attributes of a quantized layer, and how they are saved to and loaded from a state_dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.specs import FLOAT_BITS, QuantSpec
from quantface_arch.quant.ops.balance import LayerBalance

if TYPE_CHECKING:
    from quantface_arch.quant.finetune.weight_trainers import WeightTrainer

__all__ = ["LayerState", "State"]


# A layer may lack these tensors. The first is a buffer, the others are parameters.
OPTIONAL = ("balance_multiplier", "branch_down", "branch_up", "act_bounds")


class State(Enum):
    """Lifecycle of a layer and of a model: float → calibrating → quantized."""

    FLOAT = "float"
    CALIBRATING = "calibrating"
    QUANTIZED = "quantized"


class LayerState(nn.Module):
    """The attributes of a quantized layer, see ``QuantLayer``, and their ``state_dict``."""

    name: str
    weight_spec: QuantSpec
    activation_spec: QuantSpec
    state: State
    balance: LayerBalance
    observer: Callable[[Tensor], None] | None
    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor
    act_scale: Tensor
    act_zero_point: Tensor
    act_low: Tensor
    act_high: Tensor
    balance_multiplier: Tensor | None
    branch_down: Tensor | None
    branch_up: Tensor | None
    act_bounds: Tensor | None
    tuner: WeightTrainer | None
    branch_bits: int = FLOAT_BITS
    groups: int = 1

    def reset_quantization(self) -> None:
        """Remove balancing, branches and trained bounds; the weight is not changed."""
        self.balance = LayerBalance()
        self.register_buffer(OPTIONAL[0], None)
        for parameter in OPTIONAL[1:]:
            self.register_parameter(parameter, None)

    @property
    def channels(self) -> int:
        """Return the number of channels of the input."""
        return self.weight.shape[1] * self.groups

    @property
    def zero_points_shape(self) -> tuple[int, ...]:
        """Return the shape of the input's zero point: () or (channels,)."""
        return (self.channels,) if self.activation_spec.has_channel_zero_points else ()

    def column_energy(self) -> Tensor:
        """Return the sum of the squared weights that multiply each input channel, (channels,)."""
        squares = self.weight.detach().float().square()
        shape = (self.groups, -1, squares.shape[1], squares[0, 0].numel())
        return squares.reshape(shape).sum((1, 3)).flatten()

    def get_extra_state(self) -> Tensor:
        """Return state, bit widths and rotation as a tensor, int64 (4 + 2·segments,).

        The seed of a regular rotation, which has no random signs, is -1.

        It is a tensor because a ``state_dict`` holds tensors only. Together with the buffers and
        parameters it describes the whole layer, so a ``state_dict`` loads into any layer of the
        same bit widths, even if only one of the two is balanced or has branches.
        """
        place = list(State).index(self.state)
        bits = (self.weight_spec.bits, self.activation_spec.bits)
        segments = [number for segment in self.balance.segments for number in segment]
        seed = -1 if self.balance.regular else self.balance.seed
        return torch.tensor((place, *bits, seed, *segments))

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state that ``get_extra_state`` returned.

        Raises:
            QuantFaceError: the state was saved from a layer of other bit widths.
        """
        place, weight_bits, activation_bits, seed, *numbers = state.tolist()
        found = [weight_bits, activation_bits]
        wanted = [self.weight_spec.bits, self.activation_spec.bits]
        if found != wanted:
            raise QuantFaceError(
                f"layer {self.name}: found weights and inputs of {found} bits, expected {wanted}"
            )
        self.state = list(State)[place]
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        balance = LayerBalance(None, segments, max(seed, 0), regular=seed < 0)
        if self.balance_multiplier is not None:
            scale = balance.signs(self.channels) / self.balance_multiplier.cpu()
            if not bool((scale == 1).all()):
                balance = replace(balance, scale=scale)
        self.balance = balance
        if self.state is State.QUANTIZED:
            self.weight.requires_grad_(False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "act_scale" not in state_dict:
            # These are weights of the float network. The specs and buffers stay, but the layer has
            # to be calibrated anew.
            self.state = State.CALIBRATING
            self.reset_quantization()
            for key, value in self.named_buffers(recurse=False):
                state_dict[prefix + key] = value
            state_dict[prefix + "_extra_state"] = self.get_extra_state()
        self._take_shapes(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _take_shapes(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Give the layer exactly the optional tensors of a state, with the same shapes."""
        for key in OPTIONAL:
            value = state_dict.get(prefix + key)
            own = getattr(self, key)
            if value is None:
                setattr(self, key, None)
            elif own is None or own.shape != value.shape:
                new = torch.zeros_like(value, device=self.weight.device)
                is_buffer = key in self._buffers
                setattr(self, key, new if is_buffer else nn.Parameter(new, requires_grad=False))
