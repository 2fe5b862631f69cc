"""Group norms whose last operation the compiler can fuse with the operations that follow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quantface_arch.runtime.cuda.kernels import affine_kernel, sums_kernel
from quantface_arch.runtime.cuda.ops import block, launch, tiles

__all__ = ["FusibleGroupNorm"]

# PROGRAMS programs keep a GPU's memory busy. A program adds up ROWS positions and CHANNELS channels
# at a time, in FEW to MANY blocks. SUMS is the number of sums that a program adds up at a time.
PROGRAMS = 1024
ROWS, CHANNELS, FEW, MANY, SUMS = 16, 128, 4, 64, 4096


class FusibleGroupNorm(nn.Module):
    """A group norm as x·factor + offset; kernels compute a factor and an offset per channel.

    Parameters and sums are float32.

    Args:
        norm: the norm that it replaces.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        ones = torch.ones(norm.num_channels)
        for name, value, default in (
            ("weight", norm.weight, ones),
            ("bias", norm.bias, torch.zeros_like(ones)),
        ):
            self.register_buffer(name, default if value is None else value.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, ...) of any dtype; the result has the same dtype."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        affine = _group_affine(x, self.groups, self.weight, self.bias, self.eps)
        factor, offset = affine.view(*affine.shape, *[1] * (x.ndim - 2))
        return (x.float() * factor + offset).to(x.dtype)


# The operator receives x itself, not a view: the compiler would copy a view.
@torch.library.custom_op("quantface::group_affine", mutates_args=())
def _group_affine(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Return factors and offsets, float32 (2, N, C), of x (N, C, ...).

    It is fastest with channels last in memory. The variance is the mean of squares minus the
    squared mean. If the mean exceeds the standard deviation by some digits, this loses twice as
    many digits.
    """
    last = x.movedim(1, -1).contiguous()
    images, channels, positions = len(x), x.shape[1], math.prod(x.shape[2:])
    columns = block(channels, 16, CHANNELS)
    across = tiles(channels, columns)
    blocks = tiles(across * images * tiles(positions, ROWS), PROGRAMS)
    blocks = min(max(blocks, FEW), MANY)
    parts = tiles(positions, ROWS * blocks)
    sums = x.new_empty((images, parts, 2, channels), dtype=torch.float32)
    sizes = {"BLOCK_R": ROWS, "BLOCK_C": columns}
    launch(sums_kernel, (across, parts, images), last, sums, positions, channels, blocks, **sizes)
    affine = _empty_affine(x)
    width = channels // groups
    columns = block(width, 2, SUMS)
    sizes = {"BLOCK_P": block(parts, 2, max(2, SUMS // columns)), "BLOCK_C": columns}
    numbers = parts, channels, width, positions * width, epsilon
    launch(affine_kernel, (groups, images), sums, weight, bias, affine, *numbers, **sizes)
    return affine


def _empty_affine(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


@_group_affine.register_fake
def _(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return _empty_affine(x)
