"""QD-LoRA: the two low-rank branches of a layer, kept as one pair of factors from the start.

Branch 1 holds the leading singular vectors of the balanced weight, so that less is left to
quantize; branch 2 starts at zero and is trained by distillation (QuantFace, arXiv 2506.00820,
QD-LoRA). Since x L₁ᵀ + x L₂ᵀ is the product with the concatenated factors, the branches need no
merging after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError, check_patterns
from quantface_arch.quant.config.branch_spec import BranchSpec
from quantface_arch.quant.config.specs import FLOAT_BITS

__all__ = [
    "branch_parameters",
    "choose_ranks",
    "factor_shapes",
    "full_rank",
    "low_rank_weight",
    "svd_factors",
    "zero_factors",
]

# Above this size, we use a randomized SVD. It is far faster, and its error is far below the
# rounding error of the residual.
EXACT = 512
# ``auto`` gives the SVD branch at most this rank.
AUTO = 16


def full_rank(weight: Tensor) -> int:
    """Return the largest possible rank of a weight as a matrix (Cout, Cin·taps)."""
    return min(weight.shape[0], weight[0].numel())


def low_rank_weight(down: Tensor, up: Tensor) -> Tensor:
    """Return the weight (Cout, Cin, *taps) whose factors are (r, Cin, *taps) and (Cout, r)."""
    return (up @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def svd_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of a weight's best approximation of this rank, each with √Σ.

    Args:
        weight: float (Cout, Cin, *taps).
        rank: at most ``full_rank(weight)``.

    Returns:
        down (rank, Cin, *taps) and up (Cout, rank), float32; up·down approximates the weight.
    """
    matrix = weight.detach().float().flatten(1)
    if rank == 0:
        return matrix.new_zeros(0, *weight.shape[1:]), matrix.new_zeros(weight.shape[0], 0)
    if min(matrix.shape) > EXACT:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=min(2 * rank + 16, min(matrix.shape)), niter=4)
        vt = v.T
    else:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    down = (root[:, None] * vt[:rank]).reshape(rank, *weight.shape[1:])
    return down.contiguous(), (u[:, :rank] * root).contiguous()


def zero_factors(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return branch 2 before training: down ~ N(0, 1/(Cin·taps)), up = 0.

    The shapes are those of ``svd_factors``.
    """
    generator = torch.Generator().manual_seed(seed)
    fan_in = weight[0].numel()
    down = torch.randn(rank, *weight.shape[1:], generator=generator) * fan_in**-0.5
    return down.to(weight.device), weight.new_zeros(weight.shape[0], rank, dtype=torch.float32)


def branch_parameters(weight: Tensor, rank: int) -> int:
    """Return how many parameters a branch of this rank has."""
    return rank * (weight.shape[0] + weight[0].numel())


def factor_shapes(weight: Tensor, rank: int) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of the factors down and up of a branch of this rank."""
    return torch.Size((rank, *weight.shape[1:])), torch.Size((weight.shape[0], rank))


def choose_ranks(
    weights: Mapping[str, Tensor], spec: BranchSpec, parameters: int
) -> dict[str, tuple[int, int]]:
    """Choose the ranks (SVD, distillation) of every layer.

    Where the two default ranks exceed a layer's cap, both are lowered in proportion. Ranks from a
    pattern are never lowered.

    Args:
        weights: weights of the layers that may have a branch, by layer name.
        parameters: parameter count of the whole model; ``spec.budget`` is a share of it.

    Raises:
        QuantFaceError: a pattern of a rank above 0 matches no layer, a rank does not fit a layer,
            or the branches exceed the budget.
    """
    able = "layer that may have a branch (grouped ones and those at 8 bits have none)"
    # A bit map also lists layers that cannot have a branch, at rank 0.
    wanted = [pattern for pattern, ranks in spec.ranks.items() if sum(ranks)]
    check_patterns("branch ranks", wanted, weights, able)
    largest = max((full_rank(weight) for weight in weights.values()), default=0)
    if weights and spec.distill + (0 if isinstance(spec.svd, str) else spec.svd) > largest:
        raise QuantFaceError(
            f"branch: found ranks {spec.svd} + {spec.distill}, the largest layer has rank {largest}"
        )
    candidates = range(AUTO, -1, -1) if isinstance(spec.svd, str) else (spec.svd,)
    chosen, spent = {}, 0
    for svd in candidates:
        chosen = {name: _ranks_of(name, weight, svd, spec) for name, weight in weights.items()}
        spent = sum(branch_parameters(weights[name], sum(ranks)) for name, ranks in chosen.items())
        spent *= spec.bits / FLOAT_BITS
        if spent <= spec.budget * parameters:
            break
    else:
        raise QuantFaceError(
            f"branch: ranks {spec.svd} + {spec.distill} take {spent / parameters:.1%} of the "
            f"model's parameters, the budget is {spec.budget:.1%}; lower them, or raise the budget"
        )
    return chosen


def _ranks_of(name: str, weight: Tensor, svd: int, spec: BranchSpec) -> tuple[int, int]:
    cap = int(spec.cap * full_rank(weight))
    for pattern, ranks in spec.ranks.items():
        if fnmatchcase(name, pattern):
            if sum(ranks) > cap:
                raise QuantFaceError(
                    f"layer {name}: found ranks {ranks[0]} + {ranks[1]}, allowed are at most {cap} "
                    f"together ({spec.cap:g} of the layer's {full_rank(weight)})"
                )
            return ranks
    total = svd + spec.distill
    if total <= cap:
        return svd, spec.distill
    kept = round(cap * svd / total)
    return kept, cap - kept
