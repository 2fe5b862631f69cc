"""Specs of a layer's grids and balancing. They are frozen, validated plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from quantface_arch.errors import QuantFaceError, check_choice, check_keys

__all__ = [
    "FLOAT_BITS",
    "KINDS",
    "MAX_BITS",
    "MIN_BITS",
    "RANGES",
    "ROTATED",
    "SCALED",
    "UNROTATED",
    "ZERO_POINTS",
    "BalanceSpec",
    "QuantSpec",
    "checked",
    "is_share",
    "is_width",
    "names_of",
]

MIN_BITS, MAX_BITS = 2, 8
GRANULARITIES = ("channel", "tensor", "group", "token")
RANGES = ("minmax", "ema", "percentile", "mse")
ZERO_POINTS = ("tensor", "channel")
ROUNDINGS = ("nearest", "gptq")
PLAIN_KINDS = ("none", "scale", "rotate", "both")
KINDS = (*PLAIN_KINDS, "auto")
# The kinds that scale channels, and those that rotate them.
SCALED, ROTATED = ("scale", "both"), ("rotate", "both")
# Where a layer is not rotated, these kinds take the place of others.
UNROTATED = {"rotate": "none", "both": "scale"}
BLOCKS = (16, 32, 64, 128, 256)
HADAMARDS = ("random", "regular")
# Checkpoints store everything that is not quantized at this bit width.
FLOAT_BITS = 16
# The search for balancing tries these exponents.
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)


def is_width(value: object) -> bool:
    """Return whether a value is a supported bit width: a whole number from 2 to 8."""
    return type(value) is int and MIN_BITS <= value <= MAX_BITS


def checked(what: str, options: object, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of a mapping of options after checking that all keys are allowed.

    Raises:
        QuantFaceError: ``options`` is no mapping, or a key is unknown; messages begin with
            ``what``.
    """
    if not isinstance(options, Mapping):
        raise QuantFaceError(f"{what}: found {options!r}, a mapping of options is wanted")
    check_keys(what, options, allowed)
    return dict(options)


def names_of(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return tuple(item.name for item in fields(kind))


@dataclass(frozen=True)
class QuantSpec:
    """One affine quantizer.

    Attributes:
        bits: bit width, 2 to 8.
        symmetric: whether the zero point is fixed at the middle, see ``quantizer.grid``.
        granularity: which values share a scale. ``tensor``: all of them. For weights, ``channel``:
            those of an output channel; ``group``: those of ``group`` neighbouring input channels
            of an output channel, at one tap. For inputs, ``token``: those of a position; ``group``:
            those of ``group`` neighbouring channels at a position; both are found anew for every
            input (dynamic).
        range: how the range is found: ``minmax``; ``ema``, for inputs only, the moving average of
            the batches' extremes; ``percentile``; or ``mse``, the least error. Dynamic ranges are
            always ``minmax``.
        percentile: share of the values that ``percentile`` keeps, in percent, in (50, 100].
        power: exponent of the error that ``mse`` sums, 2 or more.
        weighted: for weights, whether ``mse`` weights errors by the energy of the inputs, which
            minimizes the error of the layer's output.
        group: number of channels that share a scale with granularity ``group``.
        zero_points: for inputs, ``tensor``, or ``channel``: all channels share the scale, but each
            has its own zero point, so that its levels lie where its values are (``mse`` finds them,
            training moves them). Inputs of 8 bits have a single zero point, because a processor's
            integers have no more than 256 levels.
        rounding: for weights, ``nearest``, or ``gptq``, which lets later columns compensate for the
            rounding of earlier ones; layers with grouped channels always use ``nearest``.

    Raises:
        QuantFaceError: a value is not allowed.
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
    zero_points: str = "tensor"

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
        check_choice("zero_points", self.zero_points, ZERO_POINTS)
        if self.zero_points == "channel" and (self.symmetric or self.dynamic):
            raise QuantFaceError(
                "zero_points: found channel, which needs symmetric: false and granularity: tensor"
            )
        if not isinstance(self.power, (int, float)) or not 2 <= self.power <= 8:
            raise QuantFaceError(f"power: found {self.power!r}, allowed is [2, 8]")
        if type(self.group) is not int or self.group < 1:
            raise QuantFaceError(f"group: found {self.group!r}, a whole number from 1 is wanted")
        if not isinstance(self.percentile, (int, float)) or not 50 < self.percentile <= 100:
            raise QuantFaceError(f"percentile: found {self.percentile!r}, allowed is (50, 100]")

    @property
    def dynamic(self) -> bool:
        """Return whether the range is found anew for every input."""
        return self.granularity in ("token", "group")

    @property
    def has_channel_zero_points(self) -> bool:
        """Return whether each channel of an input has its own zero point at this bit width."""
        return self.zero_points == "channel" and self.bits < MAX_BITS

    def with_bits(self, bits: int) -> QuantSpec:
        """Return the same quantizer at another bit width."""
        return replace(self, bits=bits)

    def updated(self, what: str, options: object) -> QuantSpec:
        """Return a copy with some options replaced; ``what`` names the spec in error messages."""
        return replace(self, **checked(what, options, names_of(type(self))))


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_kind(what: str, kind: Any) -> None:
    if not isinstance(kind, tuple):
        check_choice(what, kind, KINDS)
    elif not kind or not all(item in PLAIN_KINDS for item in kind):
        allowed = ", ".join(PLAIN_KINDS)
        raise QuantFaceError(f"{what}: found {list(kind)!r}, a list may hold {allowed}")


def is_share(value: object) -> bool:
    """Return whether a value is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


@dataclass(frozen=True)
class BalanceSpec:
    """Rotation-scaling channel balancing, see ``balance``.

    Attributes:
        kind: ``none``, ``scale``, ``rotate``, ``both`` (the paper's), or a list of them, from which
            each layer takes the one with the least error of its output at its bit widths. ``auto``
            is the list of all four.
        alpha: exponent of the input's magnitudes in [0, 1], or a list, from which each layer takes
            the one with the least error. ``search`` is a built-in list.
        beta: exponent of the weight's magnitudes, or a list; None means 1 - alpha.
        block: 16, 32, 64, 128 or 256 rotates blocks of at most that many channels, which is faster
            at run time; None rotates all channels at once.
        sources: ``whole`` rotates concatenated inputs as one, ``split`` each by itself.
        seed: seed of the rotations' random signs.
        layers: name pattern → kind or list, for layers that differ; the first match counts.
        hadamard: ``random`` rotates by Hadamard matrices of any order with random signs;
            ``regular`` by regular ones without signs, in blocks of 16, 64, 256, ... channels
            (ConvRot).

    Raises:
        QuantFaceError: a value is not allowed.
    """

    kind: str | tuple[str, ...] = "auto"
    alpha: float | str | tuple[float, ...] = "search"
    beta: float | tuple[float | None, ...] | None = None
    block: int | None = None
    sources: str = "whole"
    seed: int = 0
    layers: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    hadamard: str = "random"

    @property
    def wanted(self) -> bool:
        """Return whether any layer may be balanced."""
        return self.kind != "none" or bool(self.layers)

    @property
    def alphas(self) -> tuple[float, ...]:
        """Return the exponents alpha to choose from."""
        return ALPHAS if self.alpha == "search" else _listed(self.alpha)

    @property
    def betas(self) -> tuple[float | None, ...]:
        """Return the exponents beta to choose from; None means 1 - alpha."""
        return _listed(self.beta)

    @property
    def regular(self) -> bool:
        """Return whether rotations are by regular Hadamard matrices."""
        return self.hadamard == "regular"

    def offering(self, kind: str) -> BalanceSpec:
        """Return a spec that balances in the same way and offers a kind to every layer."""
        return replace(self, kind=kind, layers={})

    def kinds(self, layer: str) -> tuple[str, ...]:
        """Return the kinds that a layer may choose from."""
        named = (kind for pattern, kind in self.layers.items() if fnmatchcase(layer, pattern))
        kind = next(named, self.kind)
        return PLAIN_KINDS if kind == "auto" else _listed(kind)

    def __post_init__(self) -> None:
        for what in ("kind", "alpha", "beta"):
            value = getattr(self, what)
            object.__setattr__(self, what, tuple(value) if isinstance(value, list) else value)
        _check_kind("balance kind", self.kind)
        if not (self.alphas and all(map(is_share, self.alphas))):
            raise QuantFaceError(
                f"balance alpha: found {self.alpha!r}, allowed: [0, 1], a list of such, and search"
            )
        if not (self.betas and all(beta is None or is_share(beta) for beta in self.betas)):
            raise QuantFaceError(
                f"balance beta: found {self.beta!r}, allowed are [0, 1], null, and a list of such"
            )
        if self.block is not None and self.block not in BLOCKS:
            raise QuantFaceError(f"balance block: found {self.block!r}, allowed are {BLOCKS}")
        check_choice("balance hadamard", self.hadamard, HADAMARDS)
        check_choice("balance sources", self.sources, ("whole", "split"))
        if type(self.seed) is not int or self.seed < 0:
            raise QuantFaceError(f"balance seed: found {self.seed!r}, a whole number is wanted")
        if not isinstance(self.layers, Mapping):
            raise QuantFaceError(f"balance layers: found {self.layers!r}, a mapping is wanted")
        layers = {k: tuple(v) if isinstance(v, list) else v for k, v in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        for pattern, kind in layers.items():
            _check_kind(f"balance layers {pattern!r}", kind)
