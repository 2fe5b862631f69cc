"""Rotation-scaling channel balancing: x̂ = x S⁻¹ H and Ŵ = W S H, so that x̂ Ŵᵀ = x Wᵀ.

S = diag(s) equalizes the channels' magnitudes; H is a randomized Hadamard rotation. Both act on the
input channels alone, at each position of x and at each tap of a kernel, so padding by zeros,
reflection or wrapping commutes with them (QuantFace, arXiv 2506.00820, rotation-scaling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.hadamard import Segments, rotate

__all__ = ["LayerBalance", "channel_scale"]

# Channel scales stay within this factor of their geometric mean, to keep precision in float16.
REACH = 1e3


def channel_scale(
    input_absmax: Tensor, weight_absmax: Tensor, alpha: float, beta: float | None = None
) -> Tensor:
    """Return s_j = max|x_j|^α / max|W_·j|^β, divided by its geometric mean.

    Args:
        input_absmax: float (Cin,), largest magnitude of each input channel during calibration.
        weight_absmax: float (Cin,), largest magnitude of each column of the weight.
        alpha, beta: exponents; None means β = 1 - α (SmoothQuant, Xiao et al., 2023).

    Returns:
        float32 (Cin,), positive; 1 for a channel whose inputs or weights are all zero. Layers store
        1/s, so s is rounded such that 1/(1/s) gives exactly s again.
    """
    x, w = input_absmax.double(), weight_absmax.double()
    exponent = 1 - alpha if beta is None else beta
    used = (x > 0) & (w > 0)
    log = alpha * x.clamp(min=1e-30).log() - exponent * w.clamp(min=1e-30).log()
    middle = log[used].mean() if bool(used.any()) else log.new_zeros(())
    scale = (log - middle).exp().clamp(1 / REACH, REACH)
    scale = torch.where(used, scale, torch.ones_like(scale)).float()
    return scale.reciprocal().reciprocal()


@dataclass(frozen=True, eq=False)
class LayerBalance:
    """Balancing of one layer.

    Attributes:
        scale: s, float32 (Cin,), positive; None means no scaling.
        segments: blocks of the rotation, see ``hadamard``; () means no rotation.
        seed: seed of the rotation's random signs.
        regular: whether the rotation's matrices are regular; they then have no random signs, which
            would undo that.
    """

    scale: Tensor | None = None
    segments: Segments = ()
    seed: int = 0
    regular: bool = False

    @property
    def kind(self) -> str:
        """Return the kind: ``none``, ``scale``, ``rotate`` or ``both``."""
        if self.scale is None:
            return "rotate" if self.segments else "none"
        return "both" if self.segments else "scale"

    def signs(self, channels: int) -> Tensor:
        """Return D, float32 (channels,) of ±1, fixed by the seed; 1 if there are no signs."""
        if not self.segments or self.regular:
            return torch.ones(channels)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 2, (channels,), generator=generator).float() * 2 - 1

    def multiplier(self, channels: int) -> Tensor:
        """Return S⁻¹ D, the diagonal part of the input's transform, float32 (channels,)."""
        signs = self.signs(channels)
        return signs if self.scale is None else signs / self.scale

    def weight(self, weight: Tensor, groups: int = 1, inverse: bool = False) -> Tensor:
        """Return Ŵ = W S D H of a weight (Cout, Cin/groups, ...), computed in float64.

        If ``inverse``, ``weight`` is Ŵ and W is returned.
        """
        rows, columns, *taps = weight.shape
        grouped = weight.double().view(groups, rows // groups, columns, *taps)
        scale = self.multiplier(groups * columns).double().reciprocal().to(weight.device)
        scale = scale.view(groups, 1, columns, *[1] * len(taps))
        segments = self.segments
        if segments and groups > 1:
            segments = ((segments[0][0] // groups, segments[0][1]),)
        if inverse:
            if segments:
                grouped = rotate(grouped, segments, 2, inverse=True, regular=self.regular)
            grouped = grouped / scale
        else:
            grouped = grouped * scale
            if segments:
                grouped = rotate(grouped, segments, 2, regular=self.regular)
        return grouped.reshape(weight.shape).to(weight.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scale's values as plain data."""
        segments = [list(segment) for segment in self.segments]
        plain = {"segments": segments, "seed": self.seed, "scaled": self.scale is not None}
        # Older releases refuse the key, so only regular rotations have it.
        return {**plain, "regular": True} if self.regular else plain

    @classmethod
    def from_dict(cls, name: str, options: object, scale: Tensor | None) -> LayerBalance:
        """Rebuild a balancing from ``to_dict`` and its scale; errors name the layer ``name``.

        Raises:
            QuantFaceError: the options are malformed, or do not match the scale.
        """
        wanted = {"segments", "seed", "scaled"}
        if isinstance(options, dict) and options.keys() - {"regular"} == wanted:
            segments, seed = options["segments"], options["seed"]
            regular = options.get("regular", False)
            if options["scaled"] is not (scale is not None):
                raise QuantFaceError(f"balance of layer {name!r}: scale missing or unexpected")
            pairs = isinstance(segments, list) and all(
                isinstance(pair, list) and len(pair) == 2 and all(_is_count(n) for n in pair)
                for pair in segments
            )
            if pairs and type(seed) is int and 0 <= seed < 2**63 and type(regular) is bool:
                blocks = tuple((count, size) for count, size in segments)
                return cls(scale, blocks, seed, regular)
        raise QuantFaceError(f"balance of layer {name!r}: found {options!r}, not segments and seed")


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= 2**20
