"""What quantized layers have in common: balancing, quantizers of weight and input, a branch."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.nn.balanced_layer import BalancedLayer
from quantface_arch.quant.nn.layer_state import State
from quantface_arch.quant.ops.gptq import gptq
from quantface_arch.quant.ops.lowrank import low_rank_weight, svd_factors, zero_factors
from quantface_arch.quant.ops.quantizer import (
    dynamic_grid,
    fake_quantize,
    grid,
    scale_and_zero_point,
)
from quantface_arch.quant.ops.ranges import per_weight, steps_shape, weight_range

__all__ = ["QuantLayer"]

Layer = TypeVar("Layer", bound="QuantLayer")


class QuantLayer(BalancedLayer):
    """What quantized layers have in common; stands before torch's class among the bases.

    y = Q_a(x̂) Q_w(R)ᵀ + x̂ Lᵀ + b with x̂ the balanced input, L the two branches together and R what
    they leave of the balanced weight (QuantFace, arXiv 2506.00820, QD-LoRA).

    ``bias`` keeps its name. ``weight`` is the float weight, balanced by ``apply_balance``; once
    quantized it holds the values that the integers of R read back as, so that the layer runs by
    torch's own product (simulated: low-bit values in floating point, no speed-up). The buffers are
    float32:

    - ``weight_scale``, ``weight_zero_point``: of the weight's grid, see ``ranges.steps_shape``.
    - ``act_scale``, ``act_zero_point``: scalars, of the grid of the balanced input; of no meaning
      where ranges are dynamic.
    - ``act_low``, ``act_high``: scalars, range of the layer's input as it arrives.
    - ``balance_multiplier``: (Cin,), diagonal part of the input's balancing; None without one.

    Parameters beside torch's, None where absent:

    - ``branch_down`` (r, Cin, ...) and ``branch_up`` (Cout, r): factors of L.
    - ``act_bounds`` (2,): logarithms of the factors by which training moved the grid's two ends;
      (1,): of both alike.
    - ``act_offset`` (Cin,): what is taken from the balanced input's channels before it is rounded,
      and added again after (learned, see ``weight_trainers``).

    ``tuner``, while weights are trained, gives the weight in place of ``weight``.

    ``observer``, when set, is shown every balanced input and the layer computes in floating point.
    """

    @classmethod
    def geometry(cls, module: Any) -> dict[str, Any]:
        """Return the arguments that torch's class builds a layer of this geometry from."""
        raise NotImplementedError

    @classmethod
    def empty_like(cls: type[Layer], module: Any) -> Layer:
        """Return a layer of a float layer's geometry whose parameters hold no memory."""
        return cls(**cls.geometry(module), device="meta")

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """torch's own product of this layer, with another weight of the same geometry."""
        raise NotImplementedError

    def columns(self, x: Tensor) -> Tensor:
        """What the weight is multiplied by within an input, (positions, Cin·taps); no padding."""
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
        layer.weight = cast("nn.Parameter", module.weight)
        layer.bias = cast("nn.Parameter | None", module.bias)
        layer.name, layer.weight_spec, layer.activation_spec = name, weights, activations
        layer.state, layer.observer = State.CALIBRATING, None
        steps = steps_shape(layer.weight, weights)
        for buffer, shape in (("weight_scale", steps), ("act_scale", ())):
            layer.register_buffer(buffer, torch.ones(shape, device=layer.weight.device))
        layer.register_buffer("weight_zero_point", torch.zeros_like(layer.weight_scale))
        for buffer in ("act_zero_point", "act_low", "act_high"):
            layer.register_buffer(buffer, torch.zeros_like(layer.act_scale))
        layer.tuner = None
        layer.reset_quantization()
        return layer.train(module.training)

    @property
    def rank(self) -> int:
        """Rank of the two branches together."""
        return 0 if self.branch_down is None else self.branch_down.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """As torch's layer, on the balanced and quantized input, plus the branch.

        Raises:
            QuantFaceError: the layer is not calibrated.
        """
        x = self.balance_input(input)
        if self.observer is not None:
            self.observer(x)
            return self.product(x, self.weight, self.bias)
        if self.state is State.CALIBRATING:
            raise QuantFaceError(
                f"layer {self.name}: not calibrated; run the model inside calibrating(model), "
                "then apply(), before using it"
            )
        if self.state is State.QUANTIZED:
            weight = self.weight if self.tuner is None else self.tuner.weight(self)
            y = self.product(self.quantize_input(x), weight, self.bias)
        else:
            y = self.product(x, self.weight, self.bias)
        return y if self.branch_down is None else y + self.branch(x)

    def balance_input(self, x: Tensor) -> Tensor:
        """Return x̂, which a tuner may have changed, of x's shape."""
        x = super().balance_input(x)
        return x if self.tuner is None else self.tuner.input(self, x)

    def branch(self, x: Tensor) -> Tensor:
        """x̂ Lᵀ."""
        assert self.branch_down is not None and self.branch_up is not None
        return self.low_rank_product(x, self.branch_down, self.branch_up)

    def low_rank_product(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The layer's product to ``rank`` channels, then a pointwise one to Cout."""
        taps = down.ndim - 2
        inner = self.product(x, down, None)
        return (F.linear, F.conv1d, F.conv2d)[taps](inner, up.view(*up.shape, *[1] * taps))

    def input_grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the balanced input's grid, bounds as trained so far."""
        if self.act_bounds is None:
            return self.act_scale, self.act_zero_point
        spec = self.activation_spec
        qmin, qmax = grid(spec.bits, spec.symmetric)
        if spec.symmetric:
            return self.act_scale * self.act_bounds.mean().exp(), self.act_zero_point
        # In steps of the grid as it was, so that bounds of 0 give that very grid.
        ends = torch.stack((qmin - self.act_zero_point, qmax - self.act_zero_point))
        low, high = (ends * self.act_bounds.exp()).unbind()
        growth = (high - low) / (qmax - qmin)
        zero = qmin - low / growth
        # Rounded straight through: zero must stay a level, for zero padding to stay zero.
        return self.act_scale * growth, zero + (zero.round() - zero).detach()

    def quantize_input(self, x: Tensor) -> Tensor:
        """``x`` on the grid of the layer's input, with straight-through gradients."""
        spec = self.activation_spec
        offset = None if self.act_offset is None else self.per_channel(self.act_offset).to(x.dtype)
        x = x if offset is None else x - offset
        if spec.dynamic:
            group = spec.group if spec.granularity == "group" else None
            steps = dynamic_grid(x, spec.bits, spec.symmetric, group, self.channel_axis)
        else:
            steps = self.input_grid()
        x = fake_quantize(x, *steps, *grid(spec.bits, spec.symmetric))
        # Before the product, so that zero padding stays zero.
        return x if offset is None else x + offset

    def add_branch(
        self,
        svd: int,
        distill: int,
        seed: int = 0,
        factors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Split the weight: its ``svd`` leading singular vectors go to branch 1, the rest stays.

        Branch 2, of rank ``distill``, adds nothing until it is trained.

        Args:
            seed: of branch 2's random factor.
            factors: of branch 1, down and up, instead of the singular vectors.
        """
        if not svd + distill:
            return
        down, up = factors or svd_factors(self.weight, svd)
        extra_down, extra_up = zero_factors(self.weight, distill, seed)
        residual = self.weight.detach() - low_rank_weight(down, up)
        self.weight = nn.Parameter(residual, requires_grad=False)
        self.set_branch(torch.cat((down, extra_down)), torch.cat((up, extra_up), dim=1))

    def set_branch(self, down: Tensor, up: Tensor) -> None:
        """Take factors over: down (r, Cin, ...), up (Cout, r)."""
        self.branch_down = nn.Parameter(down, requires_grad=False)
        self.branch_up = nn.Parameter(up, requires_grad=False)

    def per_weight(self, values: Tensor) -> Tensor:
        """``weight_scale`` or ``weight_zero_point``, shaped to broadcast against the weight."""
        return per_weight(values, self.weight, self.weight_spec)

    def on_weight_grid(self, weight: Tensor) -> Tensor:
        """A weight of this layer's shape on the grid of ``weight_scale``, straight-through."""
        spec = self.weight_spec
        steps = self.per_weight(self.weight_scale), self.per_weight(self.weight_zero_point)
        return fake_quantize(weight, *steps, *grid(spec.bits, spec.symmetric))

    @torch.no_grad()
    def quantize_weight(
        self, mean_square: Tensor | None = None, every: int = 1, hessian: Tensor | None = None
    ) -> None:
        """Find the weight's range and replace the weight by its values on the grid.

        The float parameter that was taken over stays as it was; the new one needs no gradient.

        Args:
            mean_square: float (channels,), of the balanced input; the ``importance`` of
                ``weight_range``, which knows none for grouped channels.
            every: see ``weight_range``.
            hessian: float (Cin·taps, Cin·taps), see ``gptq``; None: round to nearest.
        """
        spec = self.weight_spec
        importance = mean_square if self.groups == 1 else None
        low, high = weight_range(self.weight, spec, importance, every)
        scale, zero_point = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
        self.weight_scale.copy_(scale)
        self.weight_zero_point.copy_(zero_point)
        if hessian is None:
            rounded = self.on_weight_grid(self.weight)
        else:
            steps = self.per_weight(self.weight_scale), self.per_weight(self.weight_zero_point)
            scale, zero = (step.expand_as(self.weight).flatten(1) for step in steps)
            limits = grid(spec.bits, spec.symmetric)
            rounded = gptq(self.weight.flatten(1), hessian, scale, zero, *limits)
            rounded = rounded.view_as(self.weight)
        self.weight = nn.Parameter(rounded, requires_grad=False)

    @torch.no_grad()
    def set_activation_range(self, low: float, high: float) -> None:
        """Fix the grid of the balanced input from the range that it is to cover.

        Without balancing this is the range of the input as it arrives, too.
        """
        spec = self.activation_spec
        if self.balance.kind == "none":
            self.act_low.fill_(low)
            self.act_high.fill_(high)
        ends = self.act_scale.new_tensor((low, high))
        scale, zero_point = scale_and_zero_point(ends[0], ends[1], spec.bits, spec.symmetric)
        self.act_scale.copy_(scale)
        self.act_zero_point.copy_(zero_point)

    def extra_repr(self) -> str:
        """torch's description, then the widths and the state."""
        bits = f"w{self.weight_spec.bits}a{self.activation_spec.bits}"
        method = f"balance={self.balance.kind}, rank={self.rank}"
        return f"{super().extra_repr()}, {bits}, {self.state.value}, {method}"
