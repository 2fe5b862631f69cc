"""What is wanted of a layer: grids, balancing, branches. Frozen, checked, plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from quantface_arch.errors import QuantFaceError, check_choice, check_keys

__all__ = [
    "KINDS",
    "MAX_BITS",
    "MIN_BITS",
    "RANGES",
    "BalanceSpec",
    "BranchSpec",
    "QuantSpec",
    "checked",
    "is_width",
    "names_of",
]

MIN_BITS, MAX_BITS = 2, 8
GRANULARITIES = ("channel", "tensor", "group", "token")
RANGES = ("minmax", "ema", "percentile", "mse")
ROUNDINGS = ("nearest", "gptq")
PLAIN_KINDS = ("none", "scale", "rotate", "both")
KINDS = (*PLAIN_KINDS, "auto")
BLOCKS = (16, 32, 64, 128)
# Exponents that a search for balancing tries.
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)


def is_width(value: object) -> bool:
    """Whether a value is a width that quantizers know: a whole number from 2 to 8."""
    return type(value) is int and MIN_BITS <= value <= MAX_BITS


def checked(what: str, options: object, allowed: tuple[str, ...]) -> dict[str, Any]:
    """A copy of a mapping of options, all of whose keys are allowed.

    Raises:
        QuantFaceError: no mapping, or an unknown key; ``what`` names the options.
    """
    if not isinstance(options, Mapping):
        raise QuantFaceError(f"{what}: found {options!r}, a mapping of options is wanted")
    check_keys(what, options, allowed)
    return dict(options)


def names_of(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields."""
    return tuple(item.name for item in fields(kind))


@dataclass(frozen=True)
class QuantSpec:
    """One affine quantizer.

    Attributes:
        bits: width, 2 to 8.
        symmetric: zero point fixed at the middle, see ``quantizer.grid``.
        granularity: what shares a step. ``tensor``: everything. Of weights ``channel``: an output
            channel; ``group``: ``group`` neighbouring input channels of it, at one tap. Of inputs
            ``token``: a position, ``group``: ``group`` neighbouring channels of it, both found
            anew for every input (dynamic).
        range: how the range is found: ``minmax``; ``ema``, of inputs: the moving average of the
            batches' extremes; ``percentile``; or ``mse``, the least error. Dynamic ranges are
            ``minmax``.
        percentile: share of values kept by ``percentile``, in percent, in (50, 100].
        power: exponent of the error that ``mse`` sums, 2 or more.
        weighted: of weights: ``mse`` weighs errors by the input's energy, which is the error of
            the layer's output.
        group: channels that share a step with granularity ``group``.
        rounding: of weights: ``nearest``, or ``gptq``, which lets later columns make up for the
            rounding of earlier ones; layers of grouped channels go to nearest all the same.

    Raises:
        QuantFaceError: a value that is not allowed.
    """

    bits: int
    symmetric: bool = False
    granularity: str = "tensor"
    range: str = "mse"
    percentile: float = 99.9
    power: float = 2.0
    weighted: bool = True
    group: int = 64
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not is_width(self.bits):
            raise QuantFaceError(
                f"bits: found {self.bits!r}, allowed are whole numbers {MIN_BITS} to {MAX_BITS}"
            )
        for what in ("symmetric", "weighted"):
            if not isinstance(getattr(self, what), bool):
                raise QuantFaceError(
                    f"{what}: found {getattr(self, what)!r}, allowed are true and false"
                )
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("range", self.range, RANGES)
        check_choice("rounding", self.rounding, ROUNDINGS)
        if not isinstance(self.power, (int, float)) or not 2 <= self.power <= 8:
            raise QuantFaceError(f"power: found {self.power!r}, allowed is [2, 8]")
        if type(self.group) is not int or self.group < 1:
            raise QuantFaceError(f"group: found {self.group!r}, a whole number from 1 is wanted")
        if not isinstance(self.percentile, (int, float)) or not 50 < self.percentile <= 100:
            raise QuantFaceError(f"percentile: found {self.percentile!r}, allowed is (50, 100]")

    @property
    def dynamic(self) -> bool:
        """Of inputs: whether the range is found anew for every input."""
        return self.granularity in ("token", "group")

    def with_bits(self, bits: int) -> QuantSpec:
        """The same quantizer at another width."""
        return replace(self, bits=bits)

    def updated(self, what: str, options: object) -> QuantSpec:
        """The same quantizer with some options replaced; ``what`` names it in error messages."""
        return replace(self, **checked(what, options, names_of(type(self))))


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_kind(what: str, kind: Any) -> None:
    if not isinstance(kind, tuple):
        check_choice(what, kind, KINDS)
    elif not kind or not all(item in PLAIN_KINDS for item in kind):
        allowed = ", ".join(PLAIN_KINDS)
        raise QuantFaceError(f"{what}: found {list(kind)!r}, a list may hold {allowed}")


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


@dataclass(frozen=True)
class BalanceSpec:
    """Rotation-scaling channel balancing, see ``balance``.

    Attributes:
        kind: ``none``, ``scale``, ``rotate``, ``both`` (the paper's), or a list of them: per layer
            the one with the least error of the layer's output at its widths. ``auto``: of all.
        alpha: exponent of the input's magnitudes in [0, 1]; a list of them, or ``search``, which
            is a list: the one with the least error, too.
        beta: exponent of the weight's magnitudes, or a list; None: 1 - alpha.
        block: 16, 32, 64 or 128 rotates blocks of so many channels, cheaper to run; None: all.
        sources: ``whole`` rotates concatenated inputs as one, ``split`` each by itself.
        seed: of the rotations' random signs.
        layers: name patterns → kind or list, for layers that are to differ; the first match counts.

    Raises:
        QuantFaceError: a value that is not allowed.
    """

    kind: str | tuple[str, ...] = "auto"
    alpha: float | str | tuple[float, ...] = "search"
    beta: float | tuple[float | None, ...] | None = None
    block: int | None = None
    sources: str = "whole"
    seed: int = 0
    layers: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether any layer is to be balanced."""
        return self.kind != "none" or bool(self.layers)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The exponents to choose from."""
        return ALPHAS if self.alpha == "search" else _listed(self.alpha)

    @property
    def betas(self) -> tuple[float | None, ...]:
        """Exponents of the weight to choose from; None: 1 - alpha."""
        return _listed(self.beta)

    def kinds(self, layer: str) -> tuple[str, ...]:
        """The kinds that a layer may choose from."""
        named = (kind for pattern, kind in self.layers.items() if fnmatchcase(layer, pattern))
        kind = next(named, self.kind)
        return PLAIN_KINDS if kind == "auto" else _listed(kind)

    def __post_init__(self) -> None:
        for what in ("kind", "alpha", "beta"):
            value = getattr(self, what)
            object.__setattr__(self, what, tuple(value) if isinstance(value, list) else value)
        _check_kind("balance kind", self.kind)
        if not (self.alphas and all(map(_is_share, self.alphas))):
            raise QuantFaceError(
                f"balance alpha: found {self.alpha!r}, allowed: [0, 1], a list of such, and search"
            )
        if not (self.betas and all(beta is None or _is_share(beta) for beta in self.betas)):
            raise QuantFaceError(
                f"balance beta: found {self.beta!r}, allowed are [0, 1], null, and a list of such"
            )
        if self.block is not None and self.block not in BLOCKS:
            raise QuantFaceError(f"balance block: found {self.block!r}, allowed are {BLOCKS}")
        check_choice("balance sources", self.sources, ("whole", "split"))
        if type(self.seed) is not int or self.seed < 0:
            raise QuantFaceError(f"balance seed: found {self.seed!r}, a whole number is wanted")
        if not isinstance(self.layers, Mapping):
            raise QuantFaceError(f"balance layers: found {self.layers!r}, a mapping is wanted")
        layers = {k: tuple(v) if isinstance(v, list) else v for k, v in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        for pattern, kind in layers.items():
            _check_kind(f"balance layers {pattern!r}", kind)


@dataclass(frozen=True)
class BranchSpec:
    """Ranks of the two low-rank branches of a layer, see ``lowrank``.

    Attributes:
        svd: rank of the branch that takes the weight's leading singular vectors; ``auto``: the
            largest, up to 16, with which the budget is kept.
        distill: rank of the branch that starts at zero, for training.
        ranks: name patterns → [svd, distill], for layers that are to differ; the first match
            counts.
        cap: largest share of a layer's full rank that both may have together.
        budget: largest share of the model's parameters that all branches may have together.
        iterations: rounds of splitting off the SVD branch, each from what rounding left over in
            the last, while the output's error falls (SVDQuant); 1: of the weight alone.

    Raises:
        QuantFaceError: a value that is not allowed.
    """

    svd: int | str = "auto"
    distill: int = 0
    ranks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cap: float = 0.25
    budget: float = 0.1
    iterations: int = 1

    def __post_init__(self) -> None:
        if self.svd != "auto":
            _check_rank("svd", self.svd)
        _check_rank("distill", self.distill)
        if type(self.iterations) is not int or self.iterations < 1:
            raise QuantFaceError(
                f"branch iterations: found {self.iterations!r}, a whole number from 1 is wanted"
            )
        for what in ("cap", "budget"):
            if not _is_share(getattr(self, what)):
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


def _check_rank(what: str, rank: object) -> None:
    if type(rank) is not int or rank < 0:
        raise QuantFaceError(f"branch {what}: found {rank!r}, a whole number from 0 is wanted")
