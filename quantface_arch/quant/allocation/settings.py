"""The settings of a bit allocation, and the choices that they offer to a layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from quantface_arch.errors import check_patterns
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.sensitivity_file import LayerFacts
from quantface_arch.quant.allocation.solve import KINDS
from quantface_arch.quant.config.bitmap import LayerChoice

__all__ = ["AllocationSettings", "Widths"]

Widths = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """The settings of a bit allocation.

    Attributes:
        widths: candidate bit widths by kind, ``{"w": ..., "a": ...}``; a single one is fixed.
        ranks: candidate ranks of a layer's two branches together; None leaves ranks and balancing
            to the recipe.
        balances: candidate kinds of balancing; not read if ``ranks`` is None.
        budget: upper limits.
        error_weight: λ, from 0 to 1, the share of the quantization error in the cost; the rest is
            the perceptual distance.
        protect: name pattern → fixed bit width of the layers that match.
        count: name patterns of the layers that count in averages.
        image_size: side in pixels of the image whose multiply-accumulates weight the inputs, and
            which is timed.
    """

    widths: Widths
    budget: Budget
    ranks: Sequence[int] | None = None
    balances: Sequence[str] = ("none",)
    error_weight: float = 0.5
    protect: Mapping[str, int] = field(default_factory=dict)
    count: Sequence[str] = ("*",)
    image_size: int = 512

    def fixed_widths(self, layers: Mapping[str, LayerFacts]) -> dict[str, tuple[int, int]]:
        """Return the bit widths that ``protect`` fixes, and those that the network prescribes.

        Raises:
            QuantFaceError: a pattern of ``protect`` matches no layer.
        """
        check_patterns("protect", self.protect, layers)
        fixed = {name: facts.fixed for name, facts in layers.items() if facts.fixed}
        for pattern, bits in self.protect.items():
            fixed.update({name: (bits, bits) for name in layers if fnmatchcase(name, pattern)})
        return fixed

    def choices(self, layers: Mapping[str, LayerFacts]) -> dict[str, list[LayerChoice]]:
        """Return what every layer may choose from.

        Raises:
            QuantFaceError: see ``fixed_widths``.
        """
        fixed = self.fixed_widths(layers)
        return {name: self._of_layer(facts, fixed.get(name)) for name, facts in layers.items()}

    def _of_layer(self, facts: LayerFacts, fixed: tuple[int, int] | None) -> list[LayerChoice]:
        # Of choices that cost the same, the first one is taken, so more bits come first.
        weights, inputs = (sorted(self.widths[kind], reverse=True) for kind in KINDS)
        widths = [fixed] if fixed else list(itertools.product(weights, inputs))
        if self.ranks is None:
            return [LayerChoice(*pair) for pair in widths]
        found = (
            facts.choice(pair, rank, kind)
            for pair, rank, kind in itertools.product(widths, self.ranks, self.balances)
        )
        return list(dict.fromkeys(found))
