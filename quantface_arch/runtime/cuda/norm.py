"""Group norms whose last step the compiler can fuse with what follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantface_arch.runtime.cuda import ops

__all__ = ["FusibleGroupNorm"]


class FusibleGroupNorm(nn.Module):
    """A group norm: one kernel for the moments of images with channels last, and x·factor + offset.

    Its parameters are float32, as are its sums.

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
        """x (N, C, ...), of any dtype, which the result has, too."""
        mean, variance = ops.group_moments(x.movedim(1, -1), self.groups)
        width = len(self.weight) // self.groups
        factor = self.weight * (variance + self.eps).rsqrt().repeat_interleave(width, 1)
        offset = self.bias - factor * mean.repeat_interleave(width, 1)
        shape = (*factor.shape, *[1] * (x.ndim - 2))
        return (x.float() * factor.view(shape) + offset.view(shape)).to(x.dtype)
