"""The base class of quantized layers: balancing, quantizers of weight and input, a branch."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.nn.balanced_layer import BalancedLayer
from quantface_arch.quant.nn.layer_state import State
from quantface_arch.quant.ops.factors import rounded_factors
from quantface_arch.quant.ops.gptq import gptq
from quantface_arch.quant.ops.lowrank import low_rank_weight, svd_factors, zero_factors
from quantface_arch.quant.ops.quantizer import (
    dynamic_grid,
    fake_quantize,
    grid,
    scale_and_zero_point,
)
from quantface_arch.quant.ops.ranges import per_weight, steps_shape, weight_range
from quantface_arch.quant.ops.trained_bounds import trained_grid

__all__ = ["QuantLayer"]

Layer = TypeVar("Layer", bound="QuantLayer")


class QuantLayer(BalancedLayer):
    """The base class of quantized layers; subclasses list it before torch's class.

    y = Q_a(x̂) Q_w(R)ᵀ + x̂ Lᵀ + b, where x̂ is the balanced input, L the sum of the two branches
    and R the rest of the balanced weight (QuantFace, arXiv 2506.00820, QD-LoRA).

    ``bias`` keeps its name. ``weight`` is the float weight, balanced by ``apply_balance``. Once
    quantized, it holds the dequantized values of R, so that the layer runs by torch's own product.
    This simulates low-bit values in floating point, with no speed-up. The buffers are float32:

    - ``weight_scale``, ``weight_zero_point``: the weight's grid, see ``ranges.steps_shape``.
    - ``act_scale``: a scalar, the scale of the balanced input; ``act_zero_point``: its zero point,
      a scalar or (Cin,), see ``QuantSpec.zero_points``. Dynamic ranges do not use them.
    - ``act_low``, ``act_high``: scalars, the range of the layer's input before balancing.
    - ``balance_multiplier``: (Cin,), diagonal part of the input's balancing; None without one.

    These parameters are added to torch's; each is None if absent:

    - ``branch_down`` (r, Cin, ...) and ``branch_up`` (Cout, r): factors of L.
      If ``branch_bits`` is less than 16, they are rounded, see ``factors``.
    - ``act_bounds``: how far training moved the input's grid, see ``trained_grid``.

    While weights are trained, ``tuner`` computes the weight that is used instead of ``weight``.

    If ``observer`` is set, it is called with every balanced input, and the layer computes in
    floating point.
    """

    @classmethod
    def geometry(cls, module: Any) -> dict[str, Any]:
        """Return the arguments from which torch's class builds a layer of this geometry."""
        raise NotImplementedError

    @classmethod
    def empty_like(cls: type[Layer], module: Any) -> Layer:
        """Return a layer of a float layer's geometry with parameters on the meta device."""
        return cls(**cls.geometry(module), device="meta")

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply this layer's operation in torch with another weight of the same geometry."""
        raise NotImplementedError

    def columns(self, x: Tensor) -> Tensor:
        """Return the vectors of an input that multiply the weight, (positions, Cin·taps).

        Positions that need padding are left out.
        """
        raise NotImplementedError

    @classmethod
    def from_float(
        cls: type[Layer],
        module: nn.Module,
        weights: QuantSpec,
        activations: QuantSpec,
        name: str,
    ) -> Layer:
        """Return the quantized counterpart, not calibrated yet, of a float layer.

        It shares the float layer's parameters; they are not copied.

        Args:
            module: a float layer; or a quantized one before it is balanced, whose ``branch_bits``
                the new one has as well.
            name: the layer's name, for messages.
        """
        layer = cls.empty_like(module)
        layer.weight = cast("nn.Parameter", module.weight)
        layer.bias = cast("nn.Parameter | None", module.bias)
        layer.name, layer.weight_spec, layer.activation_spec = name, weights, activations
        layer.state, layer.observer = State.CALIBRATING, None
        layer.branch_bits = getattr(module, "branch_bits", layer.branch_bits)
        steps = steps_shape(layer.weight, weights)
        for buffer, shape in (("weight_scale", steps), ("act_scale", ())):
            layer.register_buffer(buffer, torch.ones(shape, device=layer.weight.device))
        layer.register_buffer("weight_zero_point", torch.zeros_like(layer.weight_scale))
        for buffer in ("act_low", "act_high"):
            layer.register_buffer(buffer, torch.zeros_like(layer.act_scale))
        zero_point = layer.act_scale.new_zeros(layer.zero_points_shape)
        layer.register_buffer("act_zero_point", zero_point)
        layer.tuner = None
        layer.reset_quantization()
        return layer.train(module.training)

    @property
    def rank(self) -> int:
        """Return the rank of the two branches together."""
        return 0 if self.branch_down is None else self.branch_down.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Run torch's layer on the balanced and quantized input, and add the branch.

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
        """Return x̂, of x's shape; during training, the tuner may change it."""
        x = super().balance_input(x)
        return x if self.tuner is None else self.tuner.input(self, x)

    def branch(self, x: Tensor) -> Tensor:
        """Return x̂ Lᵀ, the output of both branches."""
        assert self.branch_down is not None and self.branch_up is not None
        factors = self.branch_down, self.branch_up
        if self.branch_down.requires_grad:
            # Training changes the factors, which leave their grids.
            factors = rounded_factors(*factors, self.branch_bits)
        return self.low_rank_product(x, *factors)

    def low_rank_product(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Apply the layer's operation with ``rank`` outputs, then a pointwise one with Cout."""
        taps = down.ndim - 2
        inner = self.product(x, down, None)
        return (F.linear, F.conv1d, F.conv2d)[taps](inner, up.view(*up.shape, *[1] * taps))

    def input_grid(self) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point of the balanced input's grid, with trained bounds."""
        if self.act_bounds is None:
            return self.act_scale, self.act_zero_point
        bounds, spec = self.act_bounds, self.activation_spec
        return trained_grid(self.act_scale, self.act_zero_point, bounds, spec)

    def quantize_input(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid of the layer's input, with straight-through gradients."""
        spec = self.activation_spec
        if spec.dynamic:
            group = spec.group if spec.granularity == "group" else None
            steps = dynamic_grid(x, spec.bits, spec.symmetric, group, self.channel_axis)
        else:
            scale, zero = self.input_grid()
            steps = scale, self.per_channel(zero) if zero.ndim else zero
        return fake_quantize(x, *steps, *grid(spec.bits, spec.symmetric))

    def add_branch(
        self,
        svd: int,
        distill: int,
        seed: int = 0,
        factors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Move the weight's ``svd`` leading singular vectors to branch 1.

        Branch 2, of rank ``distill``, adds zero until it is trained. If the branches are rounded,
        the weight takes over what rounding changes in them.

        Args:
            seed: seed of branch 2's random factor.
            factors: factors of branch 1, down and up, instead of the singular vectors.
        """
        if not svd + distill:
            return
        down, up = factors or svd_factors(self.weight, svd)
        extra_down, extra_up = zero_factors(self.weight, distill, seed)
        down, up = torch.cat((down, extra_down)), torch.cat((up, extra_up), dim=1)
        down, up = rounded_factors(down, up, self.branch_bits)
        # Branch 2 adds zero, so the product of all is branch 1.
        residual = self.weight.detach() - low_rank_weight(down[:svd], up[:, :svd])
        self.weight = nn.Parameter(residual, requires_grad=False)
        self.set_branch(down, up)

    def set_branch(self, down: Tensor, up: Tensor) -> None:
        """Set the branches' factors: down (r, Cin, ...) and up (Cout, r)."""
        self.branch_down = nn.Parameter(down, requires_grad=False)
        self.branch_up = nn.Parameter(up, requires_grad=False)

    @torch.no_grad()
    def round_branch(self) -> None:
        """Move trained factors to their grids, if the branch is rounded."""
        if self.branch_down is not None and self.branch_up is not None:
            down, up = rounded_factors(self.branch_down, self.branch_up, self.branch_bits)
            self.branch_down.copy_(down)
            self.branch_up.copy_(up)

    def per_weight(self, values: Tensor) -> Tensor:
        """Reshape ``weight_scale`` or ``weight_zero_point`` to broadcast against the weight."""
        return per_weight(values, self.weight, self.weight_spec)

    def on_weight_grid(self, weight: Tensor) -> Tensor:
        """Return a weight of this layer's shape on its grid, with straight-through gradients."""
        spec = self.weight_spec
        steps = self.per_weight(self.weight_scale), self.per_weight(self.weight_zero_point)
        return fake_quantize(weight, *steps, *grid(spec.bits, spec.symmetric))

    @torch.no_grad()
    def quantize_weight(
        self, mean_square: Tensor | None = None, every: int = 1, hessian: Tensor | None = None
    ) -> None:
        """Find the weight's range and replace the weight by its values on the grid.

        The float layer's own parameter is not changed; the new one needs no gradient.

        Args:
            mean_square: float (channels,), mean square of the balanced input, which becomes the
                ``importance`` of ``weight_range``; it is ignored if channels are grouped.
            every: see ``weight_range``.
            hessian: float (Cin·taps, Cin·taps), see ``gptq``; None rounds to nearest.
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
        """Fix the grid of the balanced input from the range that it has to cover.

        Without balancing, this is also the range of the unbalanced input.
        """
        spec = self.activation_spec
        if self.balance.kind == "none":
            self.act_low.fill_(low)
            self.act_high.fill_(high)
        ends = self.act_scale.new_tensor((low, high))
        scale, zero_point = scale_and_zero_point(ends[0], ends[1], spec.bits, spec.symmetric)
        self.set_input_grid(scale, zero_point.expand(self.zero_points_shape))

    @torch.no_grad()
    def set_input_grid(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set the scale (scalar) and the zero point (of ``zero_points_shape``) of the input."""
        self.act_scale = scale.detach().to(self.act_low).clone()
        self.act_zero_point = zero_point.detach().to(self.act_low).clone()

    def extra_repr(self) -> str:
        """Return torch's description, then the bit widths, the state, balancing and rank."""
        bits = f"w{self.weight_spec.bits}a{self.activation_spec.bits}"
        method = f"balance={self.balance.kind}, rank={self.rank}"
        return f"{super().extra_repr()}, {bits}, {self.state.value}, {method}"
