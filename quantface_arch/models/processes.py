"""Keep the networks of all processes in a distributed training the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["average_gradients", "broadcast_state"]

# Gradients are averaged in buckets of about this size, because a copy of all gradients would double
# the memory of a large network.
BUCKET_BYTES = 1 << 26


def broadcast_state(net: nn.Module) -> None:
    """Give every process the first one's parameters and buffers; a single process does nothing."""
    if not dist.is_initialized():
        return
    for value in chain(net.parameters(), net.buffers()):
        dist.broadcast(value.detach(), src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; a single process does nothing.

    Every process must have gradients of the same parameters.
    """
    if not dist.is_initialized():
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type in groups of about ``BUCKET_BYTES``."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
