"""The balancing of a quantized layer's input and weight."""

from __future__ import annotations

from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.nn.layer_state import LayerState, State
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.hadamard import has_order, rotate

__all__ = ["BalancedLayer"]


class BalancedLayer(LayerState):
    """A layer whose input can be scaled and rotated per channel, and its weight inversely."""

    # The axis of the input's channels is counted from the end, because a batch axis may be absent.
    channel_axis: int

    def balance_input(self, x: Tensor) -> Tensor:
        """Return x̂ = x S⁻¹ H, of x's shape."""
        if self.balance_multiplier is not None:
            x = x * self.per_channel(self.balance_multiplier).to(x.dtype)
            segments, regular = self.balance.segments, self.balance.regular
            x = rotate(x, segments, self.channel_axis, regular=regular) if segments else x
        return x

    def per_channel(self, values: Tensor) -> Tensor:
        """Reshape values (Cin,) so that they broadcast against the input."""
        return values.view(-1, *[1] * (-1 - self.channel_axis))

    def apply_balance(self, balance: LayerBalance) -> None:
        """Balance the weight now and the input in every call, which keeps the output the same.

        The weight becomes a new parameter; the float layer's own parameter is not changed.

        Raises:
            QuantFaceError: the layer is balanced or quantized already, or see ``check_balance``.
        """
        if self.balance.kind != "none" or self.state is State.QUANTIZED:
            raise QuantFaceError(f"layer {self.name}: balanced or quantized already")
        self.set_balance(balance)
        if balance.kind != "none":
            weight = balance.weight(self.weight.detach(), self.groups)
            self.weight = nn.Parameter(weight, requires_grad=False)

    def check_balance(self, balance: LayerBalance) -> None:
        """Raise QuantFaceError if a balancing does not fit the layer."""
        scale, segments = balance.scale, balance.segments
        widths = [] if scale is None else [scale.numel()]
        if segments:
            widths.append(sum(count * size for count, size in segments))
        if any(width != self.channels for width in widths):
            raise QuantFaceError(
                f"layer {self.name}: found balancing for {widths} channels, "
                f"the layer has {self.channels}"
            )
        if scale is not None and not bool((scale.isfinite() & (scale > 0)).all()):
            raise QuantFaceError(f"layer {self.name}: found a scale not positive and finite")
        for count, size in segments:
            if not has_order(size, balance.regular):
                kind = "regular Hadamard" if balance.regular else "Hadamard"
                raise QuantFaceError(f"layer {self.name}: there is no {kind} order {size}")
            if self.groups > 1 and (len(segments) > 1 or count % self.groups):
                raise QuantFaceError(
                    f"layer {self.name}: found blocks {segments} across its {self.groups} groups"
                )

    def set_balance(self, balance: LayerBalance) -> None:
        """Balance the input in every call; the weight must be balanced already.

        Raises:
            QuantFaceError: see ``check_balance``.
        """
        self.check_balance(balance)
        self.balance = balance
        if balance.kind != "none":
            multiplier = balance.multiplier(self.channels)
            self.register_buffer("balance_multiplier", multiplier.to(self.weight.device))
