"""Hadamard rotations of a channel axis, whole or in blocks.

Orders are products of 2 (Sylvester) and q + 1 with q prime, q ≡ 3 mod 4 (Paley's first
construction); no table of matrices is kept. A rotation of n channels is a tuple of *segments*
``(count, size)``: ``count`` neighbouring blocks of Hadamard order ``size`` each. ``((1, 320),)``
mixes all 320 channels, ``((5, 64),)`` five groups of 64, ``((1, 640), (1, 320))`` two sources.

*Regular* matrices are Kronecker powers of one of order 4. The sums of all their rows and columns
are equal, so they spread an input whose channels are all alike; a Sylvester matrix, whose first
column is all ones, would add it up in one channel (ConvRot, Huang et al., arXiv 2512.03673).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["MIN_WIDTH", "Segments", "factors", "hadamard", "has_order", "rotate", "segments_of"]

# Layers with fewer channels than this stay unbalanced.
MIN_WIDTH = 16
# A Sylvester matrix is applied as Kronecker factors of at most this order. They take n·16·log₁₆ n
# operations, but in a few dense products rather than in log₂ n passes over memory.
RADIX = 16
# All Kronecker powers of this matrix are regular Hadamard matrices.
REGULAR = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))

Segments = tuple[tuple[int, int], ...]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


def _is_paley(order: int) -> bool:
    return order % 4 == 0 and order & (order - 1) != 0 and _is_prime(order - 1)


@cache
def factors(n: int) -> tuple[int, ...] | None:
    """Return orders whose Kronecker product is a Hadamard matrix of order n; None if none exist.

    Paley orders come first, then powers of two, merged up to ``RADIX``. Of several products, the
    one with the smallest sum is returned, because the sum is the work per channel.
    """
    if n < 1:
        return None
    if n & (n - 1) == 0:
        parts = []
        while n > 1:
            parts.append(min(n, RADIX))
            n //= parts[-1]
        return tuple(parts)
    best: tuple[int, ...] | None = None
    for order in range(12, n + 1, 4):
        if n % order == 0 and _is_paley(order):
            rest = factors(n // order)
            if rest is not None and (best is None or order + sum(rest) < sum(best)):
                best = (order, *rest)
    return best


def has_order(n: int, regular: bool = False) -> bool:
    """Return whether a Hadamard matrix of order n, or a regular one, can be built."""
    if regular:
        return n > 1 and n & (n - 1) == 0 and n.bit_length() % 2 == 1
    return factors(n) is not None


@cache
def _base(order: int, regular: bool) -> Tensor:
    """Return a Hadamard matrix, float32 (order, order) of ±1: regular, Sylvester's or Paley's."""
    if regular:
        matrix = torch.tensor(REGULAR, dtype=torch.float32)
        return matrix if order == len(matrix) else torch.kron(matrix, _base(order // 4, True))
    if order & (order - 1) == 0:
        matrix = torch.ones(1, 1)
        while matrix.shape[0] < order:
            matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
        return matrix
    q = order - 1
    residues = {value * value % q for value in range(1, q)}
    chi = torch.tensor([0.0] + [1.0 if value in residues else -1.0 for value in range(1, q)])
    index = torch.arange(q)
    jacobsthal = chi[(index[:, None] - index[None, :]) % q]
    skew = torch.zeros(order, order)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = jacobsthal
    return skew + torch.eye(order)


# Orthogonal factors are cached by order, kind, device and dtype, so that each is copied to a GPU
# once.
_FACTORS: dict[tuple[int, bool, torch.device, torch.dtype], Tensor] = {}


def _factor(order: int, regular: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the Hadamard matrix divided by the square root of its order, from the cache."""
    key = (order, regular, device, dtype)
    if key not in _FACTORS:
        # A tensor made in inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False):
            matrix = (_base(order, regular).double() * order**-0.5).to(device, dtype)
        if type(matrix) is not Tensor:
            # Tracing returns a proxy tensor, which is useless outside the trace, so we do not cache
            # it.
            return matrix
        _FACTORS[key] = matrix
    return _FACTORS[key]


def hadamard(n: int, regular: bool = False) -> Tensor:
    """Return the Hadamard matrix that ``rotate`` applies: float32 (n, n) of ±1, rows orthogonal.

    Raises:
        ValueError: no Hadamard matrix of this order, or no regular one, can be built.
    """
    parts = factors(n)
    if parts is None or not has_order(n, regular):
        orders = "powers of 4" if regular else "products of 2 and q + 1, q prime, q = 3 mod 4"
        raise ValueError(f"Hadamard order {n}: only {orders}")
    matrix = torch.ones(1, 1)
    for part in parts:
        matrix = torch.kron(matrix, _base(part, regular))
    return matrix


def segments_of(
    sources: tuple[int, ...], block: int | None = None, regular: bool = False
) -> Segments:
    """Return the blocks that rotate the channels of ``sources``, each source by itself.

    Args:
        sources: channels of each of the concatenated inputs; one number for a plain input.
        block: largest size of a block; None allows a block for the whole source.
        regular: whether the blocks' matrices must be regular.

    Returns:
        segments over all channels; () if a source cannot be divided into Hadamard blocks of at
        least ``MIN_WIDTH`` channels.
    """
    segments = []
    for width in sources:
        limit = width if block is None else min(block, width)
        sizes = [size for size in range(limit, MIN_WIDTH - 1, -1) if width % size == 0]
        size = next((size for size in sizes if has_order(size, regular)), None)
        if size is None:
            return ()
        segments.append((width // size, size))
    return tuple(segments)


def rotate(
    x: Tensor, segments: Segments, axis: int, inverse: bool = False, regular: bool = False
) -> Tensor:
    """Return x H along one axis. H = blockdiag(Had/√size) is orthogonal, so norms are kept.

    Each Hadamard matrix is applied by its Kronecker factors, which takes n·log n operations.

    Args:
        x: float, any shape; ``axis`` holds Σ count·size channels.
        axis: index of the channel axis.
        inverse: return x Hᵀ instead.
        regular: whether the blocks' matrices are regular.
    """
    axis %= x.ndim
    if len(segments) == 1:
        return _rotate_blocks(x, *segments[0], axis, inverse, regular)
    parts = x.split([count * size for count, size in segments], dim=axis)
    rotated = [
        _rotate_blocks(part, *segment, axis, inverse, regular)
        for part, segment in zip(parts, segments, strict=True)
    ]
    return torch.cat(rotated, dim=axis)


def _rotate_blocks(
    x: Tensor, count: int, size: int, axis: int, inverse: bool, regular: bool
) -> Tensor:
    parts = factors(size)
    assert parts is not None
    shape = x.shape
    before = int(torch.Size(shape[:axis]).numel()) * count
    after = int(torch.Size(shape[axis + 1 :]).numel())
    rest = size
    for part in parts:
        rest //= part
        matrix = _factor(part, regular, x.device, x.dtype)
        x = x.reshape(before * (size // (part * rest)), part, rest * after)
        # Here x is the right operand, so x H becomes Hᵀ x.
        x = torch.matmul(matrix if inverse else matrix.T, x)
    return x.reshape(shape)
