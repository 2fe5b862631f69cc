"""How a whole network is quantized: the specs of its layers and the layers they apply to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.branch_spec import BranchSpec
from quantface_arch.quant.config.specs import (
    FLOAT_BITS,
    MAX_BITS,
    MIN_BITS,
    BalanceSpec,
    QuantSpec,
    checked,
    names_of,
)
from quantface_arch.utils.plain import plain

__all__ = ["Recipe"]

# Earlier releases refuse these keys, so they are written only if they differ from their defaults.
NEWER = {"balance": {"hadamard": "random"}, "branch": {"bits": FLOAT_BITS}}


def _patterns(what: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise QuantFaceError(f"recipe {what}: found {value!r}, a list of name patterns is wanted")
    if not all(isinstance(pattern, str) for pattern in value):
        raise QuantFaceError(f"recipe {what}: found {value!r}, patterns are strings")
    return tuple(value)


@dataclass(frozen=True)
class Recipe:
    """How a network is quantized: quantizers, balancing, branches, and the layers they apply to.

    Patterns are shell globs (``fnmatch``) on module names, such as ``unet.*.conv1``.

    Attributes:
        weights: quantizer of every layer's weight.
        activations: quantizer of every layer's input.
        include: layers to convert.
        exclude: included layers that stay in floating point.
        eight_bit: layers whose weights and activations have 8 bits whatever the bit widths above,
            such as the first and last convolution of a network and its time embedding.
        name: a name of the form wXaY, see ``from_dict``, or the name in reports and checkpoints.
        balance: balancing of every layer's input channels.
        branch: ranks of every layer's low-rank branches.
    """

    weights: QuantSpec
    activations: QuantSpec
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    eight_bit: tuple[str, ...] = field(default=())
    name: str = "custom"
    balance: BalanceSpec = field(default_factory=BalanceSpec)
    branch: BranchSpec = field(default_factory=BranchSpec)

    def __post_init__(self) -> None:
        for what in ("include", "exclude", "eight_bit"):
            object.__setattr__(self, what, _patterns(what, getattr(self, what)))
        for what, allowed in (
            ("weights", ("channel", "tensor", "group")),
            ("activations", ("tensor", "token", "group")),
        ):
            check_choice(f"recipe {what}: granularity", getattr(self, what).granularity, allowed)
        if self.activations.rounding != "nearest":
            raise QuantFaceError(
                f"recipe activations: rounding: found {self.activations.rounding!r}, "
                "inputs allow nearest only"
            )
        if self.weights.range == "ema":
            raise QuantFaceError("recipe weights: range: found 'ema', which only inputs allow")
        if self.weights.zero_points != "tensor":
            raise QuantFaceError(
                "recipe weights: zero_points: found 'channel', which only inputs allow"
            )
        if not isinstance(self.name, str):
            raise QuantFaceError(f"recipe name: found {self.name!r}, a string is wanted")

    @classmethod
    def from_name(cls, name: str) -> Recipe:
        """Return the recipe of a name such as ``w4a8``.

        Weights are symmetric per output channel, activations asymmetric per tensor; both ranges
        minimize the squared error. Balancing and branches have the defaults of their specs.

        Raises:
            QuantFaceError: the name is not of the form wXaY with X and Y from 2 to 8.
        """
        match = re.fullmatch(r"w([2-8])a([2-8])", name.lower()) if isinstance(name, str) else None
        if match is None:
            raise QuantFaceError(
                f"recipe: found {name!r}, allowed are w8a8, w4a8, w6a6, w4a6, w4a4 "
                f"and other wXaY with X and Y from {MIN_BITS} to {MAX_BITS}"
            )
        weight_bits, activation_bits = (int(width) for width in match.groups())
        return cls(
            weights=QuantSpec(weight_bits, symmetric=True, granularity="channel"),
            activations=QuantSpec(activation_bits),
            name=name.lower(),
        )

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Recipe:
        """Return a recipe from the mapping in a YAML or JSON file.

        If ``name`` has the form wXaY, the other keys replace parts of that recipe. Any other name
        needs ``weights`` and ``activations`` with their ``bits``.

        Raises:
            QuantFaceError: a key is unknown, or a value is not allowed.
        """
        given = checked("recipe", options, names_of(cls))
        try:
            base = cls.from_name(given.get("name", ""))
        except QuantFaceError:
            for what in ("weights", "activations"):
                if "bits" not in (given.get(what) or ()):
                    raise QuantFaceError(f"recipe {what}: no bits are given") from None
            base = replace(cls.from_name("w8a8"), name="custom")
        for what in ("weights", "activations"):
            if what in given:
                given[what] = getattr(base, what).updated(f"recipe {what}", given[what])
        for what, spec in (("balance", BalanceSpec), ("branch", BranchSpec)):
            if what in given:
                given[what] = spec(**checked(f"recipe {what}", given[what], names_of(spec)))
        return replace(base, **given)

    @classmethod
    def of(cls, value: str | Mapping[str, Any] | Recipe) -> Recipe:
        """Return a recipe from any of its three forms: a name, a mapping, or a recipe."""
        if isinstance(value, Recipe):
            return value
        return cls.from_name(value) if isinstance(value, str) else cls.from_dict(value)

    def with_choices(self, choices: Mapping[str, LayerChoice]) -> Recipe:
        """Return the recipe with the ranks and the balancing of a bit map.

        They come before the recipe's own patterns. The recipe's cap does not hold for a map that
        gives all ranks. The bit widths of the map are left to ``convert``.
        """
        ranks = {
            name: self.branch.split(choice.rank)
            for name, choice in choices.items()
            # Layers at 8 bits have no branch, whatever the recipe says.
            if choice.rank is not None and (choice.rank or min(choice.bits) < MAX_BITS)
        }
        cap = self.branch.cap if any(x.rank is None for x in choices.values()) else 1.0
        kinds = {name: choice.balance for name, choice in choices.items() if choice.balance}
        return replace(
            self,
            branch=replace(self.branch, ranks={**ranks, **self.branch.ranks, **ranks}, cap=cap),
            balance=replace(self.balance, layers={**kinds, **self.balance.layers, **kinds}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` turns into an equal recipe."""
        options = plain(asdict(self))
        for part, defaults in NEWER.items():
            for key, value in defaults.items():
                if options[part][key] == value:
                    del options[part][key]
        return options
