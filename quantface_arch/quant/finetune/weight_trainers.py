"""Weight trainers: methods to train the weight of a quantized layer.

During training, a weight trainer computes the layer's rounded weight. ``fold_trained`` then stores
the result, rounded, in the layer, which no longer needs the trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.lowrank import full_rank, low_rank_weight, zero_factors
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point
from quantface_arch.quant.ops.ranges import step_rows

if TYPE_CHECKING:
    from quantface_arch.quant.nn.layer import QuantLayer

__all__ = ["WEIGHT_TRAINERS", "AdaRound", "LearnedScale", "MergedBranch", "WeightTrainer"]

# These constants are AdaRound's (Nagel et al., 2020; Q-Diffusion keeps them): the ends of its
# stretched sigmoid, the weight of its penalty, the share of the training after which the penalty
# sets in, and the penalty's sharpness from then to the end.
GAMMA, ZETA = -0.1, 1.1
PENALTY, WARM_UP, SHARPNESS = 0.01, 0.2, (20.0, 2.0)


class WeightTrainer(nn.Module):
    """A trainable replacement for a layer's rounded weight; it starts from the layer's weight."""

    def input(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """Return the balanced input after the trainer's change, by default none."""
        return x

    def weight(self, layer: QuantLayer) -> Tensor:
        """Return the weight that the layer computes with, in the same shape."""
        raise NotImplementedError

    def penalty(self, progress: float) -> Tensor | float:
        """Return a penalty to add to the loss; ``progress`` of the training is from 0 to 1."""
        return 0.0

    @torch.no_grad()
    def fold_trained(self, layer: QuantLayer) -> None:
        """Store the trained weight in the layer."""
        layer.weight = nn.Parameter(self.weight(layer).detach(), requires_grad=False)


class AdaRound(WeightTrainer):
    """A trainer that learns whether to round each weight down or up (Nagel et al., 2020).

    Args:
        layer: a quantized layer.
        residual: float, the weight before rounding.
    """

    floor: Tensor

    def __init__(self, layer: QuantLayer, residual: Tensor) -> None:
        super().__init__()
        scale = layer.per_weight(layer.weight_scale)
        position = residual.detach() / scale
        self.register_buffer("floor", position.floor(), persistent=False)
        share = ((position - position.floor()) - GAMMA) / (ZETA - GAMMA)
        self.logit = nn.Parameter(torch.logit(share.clamp(1e-4, 1 - 1e-4)))

    def _up(self) -> Tensor:
        return (torch.sigmoid(self.logit) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self, layer: QuantLayer) -> Tensor:
        # Rounding is soft during training, and final where the error is measured.
        up = self._up() if torch.is_grad_enabled() else (self.logit >= 0).float()
        zero = layer.per_weight(layer.weight_zero_point)
        spec = layer.weight_spec
        steps = (self.floor + up + zero).clamp(*grid(spec.bits, spec.symmetric)) - zero
        return steps * layer.per_weight(layer.weight_scale)

    def penalty(self, progress: float) -> Tensor | float:
        if progress < WARM_UP:
            return 0.0
        done = (progress - WARM_UP) / (1 - WARM_UP)
        sharpness = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * done
        return PENALTY * (1 - (2 * self._up() - 1).abs().pow(sharpness)).mean()


class MergedBranch(WeightTrainer):
    """A low-rank change of the weight that is rounded with it (EfficientDM, He et al., 2024).

    It costs nothing at run time, but it can only move weights along their grid.

    Args:
        layer: a quantized layer.
        rank: rank of the change, at most that of the weight.
    """

    start: Tensor

    def __init__(self, layer: QuantLayer, residual: Tensor, rank: int = 32) -> None:
        super().__init__()
        down, up = zero_factors(layer.weight, min(rank, full_rank(layer.weight)), seed=0)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.register_buffer("start", layer.weight.detach(), persistent=False)

    def weight(self, layer: QuantLayer) -> Tensor:
        return layer.on_weight_grid(self.start + low_rank_weight(self.down, self.up))


class LearnedScale(WeightTrainer):
    """A trainer that learns a scale per input channel (PassionSR, Zhu et al., 2025).

    The weight's columns are multiplied by the scales, the input's channels divided. At every
    training step, the weight's range is set to its new extremes. The offsets of PassionSR are zero
    points of channels, which training moves with the input's range.

    Args:
        layer: a quantized layer without rotation, which would mix the scaled channels.
        residual: float, the weight before rounding.

    Raises:
        QuantFaceError: the layer is rotated, or its weight has a scale per group of channels.
    """

    start: Tensor

    def __init__(self, layer: QuantLayer, residual: Tensor) -> None:
        super().__init__()
        if layer.balance.segments:
            raise QuantFaceError(
                f"layer {layer.name}: found balance {layer.balance.kind}, a learned scale allows "
                "none and scale"
            )
        if layer.weight_spec.granularity == "group":
            raise QuantFaceError(
                f"layer {layer.name}: found weights of granularity group, a learned scale allows "
                "channel and tensor"
            )
        self.log_scale = nn.Parameter(torch.zeros(layer.channels, device=residual.device))
        self.register_buffer("start", residual.detach(), persistent=False)

    def input(self, layer: QuantLayer, x: Tensor) -> Tensor:
        return x * layer.per_channel((-self.log_scale).exp()).to(x.dtype)

    def _scaled(self, layer: QuantLayer) -> Tensor:
        start = self.start
        rows, columns, *taps = start.shape
        scale = self.log_scale.exp().view(layer.groups, 1, columns, *[1] * len(taps))
        grouped = start.view(layer.groups, rows // layer.groups, columns, *taps)
        return (grouped * scale).view_as(start)

    def _steps(self, layer: QuantLayer, weight: Tensor) -> tuple[Tensor, Tensor]:
        spec = layer.weight_spec
        rows = step_rows(weight, spec)
        return scale_and_zero_point(rows.amin(1), rows.amax(1), spec.bits, spec.symmetric)

    def weight(self, layer: QuantLayer) -> Tensor:
        scaled = self._scaled(layer)
        scale, zero = (layer.per_weight(step) for step in self._steps(layer, scaled))
        spec = layer.weight_spec
        return fake_quantize(scaled, scale, zero.detach(), *grid(spec.bits, spec.symmetric))

    @torch.no_grad()
    def fold_trained(self, layer: QuantLayer) -> None:
        scale, zero = self._steps(layer, self._scaled(layer))
        super().fold_trained(layer)
        layer.weight_scale.copy_(scale)
        layer.weight_zero_point.copy_(zero)
        learned = self.log_scale.detach().exp().cpu()
        before = layer.balance.scale
        layer.set_balance(LayerBalance(learned if before is None else before * learned))


# This maps the argument ``weights`` of ``trainable`` to a trainer, which is built from a quantized
# layer and its float residual.
WEIGHT_TRAINERS: dict[str, Callable[..., WeightTrainer]] = {
    "rounding": AdaRound,
    "merged": MergedBranch,
    "scale": LearnedScale,
}
