"""The spec of a layer's branches: frozen, validated plain data, like those in ``specs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.specs import FLOAT_BITS, MAX_BITS, MIN_BITS, is_share, is_width

__all__ = ["BranchSpec"]


@dataclass(frozen=True)
class BranchSpec:
    """Ranks of the two low-rank branches of a layer, see ``lowrank``.

    Attributes:
        svd: rank of the branch that takes the weight's leading singular vectors; ``auto`` is the
            largest rank, up to 16, that keeps the budget.
        distill: rank of the branch that starts at zero, for training.
        ranks: name pattern → [svd, distill], for layers that differ; the first match counts.
        cap: largest share of a layer's full rank that its two branches may have together.
        budget: largest share of the model's parameters that all branches may have together;
            rounded branches count by their bits, so those of 8 may have twice the rank.
        iterations: rounds of computing the SVD branch (SVDQuant). The first decomposes the weight;
            each later one decomposes the part that the last round's rounded weight does not
            represent, as long as the error of the layer's output falls.
        bits: bits of the factors. 2 to 8 rounds each of a factor's components to its own symmetric
            grid, before the rest of the weight is rounded (LoRaQ); 16 does not round them.

    Raises:
        QuantFaceError: a value is not allowed.
    """

    svd: int | str = "auto"
    distill: int = 0
    ranks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cap: float = 0.25
    budget: float = 0.1
    iterations: int = 1
    bits: int = FLOAT_BITS

    def __post_init__(self) -> None:
        if not is_width(self.bits) and self.bits != FLOAT_BITS:
            raise QuantFaceError(
                f"branch bits: found {self.bits!r}, allowed are {MIN_BITS} to {MAX_BITS} "
                f"and {FLOAT_BITS}"
            )
        if self.svd != "auto":
            _check_rank("svd", self.svd)
        _check_rank("distill", self.distill)
        if type(self.iterations) is not int or self.iterations < 1:
            raise QuantFaceError(
                f"branch iterations: found {self.iterations!r}, a whole number from 1 is wanted"
            )
        for what in ("cap", "budget"):
            if not is_share(getattr(self, what)):
                raise QuantFaceError(
                    f"branch {what}: found {getattr(self, what)!r}, allowed is [0, 1]"
                )
        if not isinstance(self.ranks, Mapping):
            raise QuantFaceError(f"branch ranks: found {self.ranks!r}, a mapping is wanted")
        for pattern, pair in self.ranks.items():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise QuantFaceError(
                    f"branch ranks {pattern!r}: found {pair!r}, [svd, distill] is wanted"
                )
            for what, rank in zip(("svd", "distill"), pair, strict=True):
                _check_rank(f"ranks {pattern!r} {what}", rank)
        object.__setattr__(self, "ranks", {name: tuple(pair) for name, pair in self.ranks.items()})

    def split(self, rank: int) -> tuple[int, int]:
        """Return the ranks (svd, distill) of two branches that have a rank together."""
        distill = min(self.distill, rank)
        return rank - distill, distill


def _check_rank(what: str, rank: object) -> None:
    if type(rank) is not int or rank < 0:
        raise QuantFaceError(f"branch {what}: found {rank!r}, a whole number from 0 is wanted")
