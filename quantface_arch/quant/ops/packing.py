"""Pack integers of 2 to 8 bits into bytes, as a stream of bits without gaps."""

from __future__ import annotations

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError

__all__ = ["pack", "packed_size", "unpack"]

# Values are packed in chunks of this size, a multiple of 8, because packing expands each bit to a
# byte.
CHUNK = 2**20


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes ``count`` integers of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers, the lowest bit first.

    Args:
        values: integers in [0, 2^bits - 1], any shape, read in memory order.
        bits: 1 to 8.

    Returns:
        uint8 (packed_size(values.numel(), bits),); the bits after the last value are zero.

    Raises:
        QuantFaceError: a value is outside this range.
    """
    flat = values.reshape(-1)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 2**bits):
        raise QuantFaceError(
            f"packing: found values from {int(flat.min())} to {int(flat.max())}, "
            f"{bits} bits allow 0 to {2**bits - 1}"
        )
    parts = [_pack_chunk(chunk, bits) for chunk in flat.to(torch.uint8).split(CHUNK)]
    return torch.cat(parts)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` integers that ``pack`` packed, uint8 (count,).

    Raises:
        QuantFaceError: ``packed`` is not uint8, or its size is not that of ``count`` packed values.
    """
    size = packed_size(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
        raise QuantFaceError(
            f"unpacking: found {packed.dtype} of shape {tuple(packed.shape)}, "
            f"expected torch.uint8 of shape ({size},) for {count} values of {bits} bits"
        )
    if count == 0:
        return packed
    chunks = packed.split(packed_size(CHUNK, bits))
    return torch.cat([_unpack_chunk(chunk, bits) for chunk in chunks])[:count]


def _pack_chunk(values: Tensor, bits: int) -> Tensor:
    stream = (values[:, None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    stream = torch.nn.functional.pad(stream.reshape(-1), (0, -stream.numel() % 8))
    return (stream.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack_chunk(packed: Tensor, bits: int) -> Tensor:
    stream = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(-1)
    stream = stream[: stream.numel() // bits * bits].view(-1, bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
