"""The report of a conversion: a table of all converted layers and of all that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from quantface_arch.quant.config.recipe import Recipe

__all__ = ["ConversionReport", "ConvertedLayer", "SkippedLayer", "float_groups"]

# The report names a float module if it holds more than this share of the network's parameters or
# multiply-accumulates.
NOTABLE = 0.01
IDLE = "calibration never reached it: it is unused, or another module reads its weight directly"
BY_CHOICE = ("excluded by the recipe", "not included by the recipe")


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that was replaced: its name, float type, bit widths and number of parameters."""

    name: str
    kind: str
    weight_bits: int
    activation_bits: int
    parameters: int


@dataclass(frozen=True)
class SkippedLayer:
    """A layer, or a module with matrices of its own, that stays in floating point, and why."""

    name: str
    kind: str
    reason: str
    parameters: int


@dataclass(frozen=True)
class ConversionReport:
    """What was quantized and what was not; ``str(report)`` is a table.

    Attributes:
        recipe: the recipe of the conversion.
        converted: the layers that were quantized.
        skipped: layers that stay in floating point, and modules with matrices of their own that
            hold more than 1 % of the network's parameters or multiply-accumulates.
        total: number of parameters of the network.
        notes: a line for everything that the recipe asked for but a layer cannot have.
        macs: share of the network's multiply-accumulates by module, if they were counted.
    """

    recipe: Recipe
    converted: tuple[ConvertedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    total: int = 0
    notes: tuple[str, ...] = ()
    macs: Mapping[str, float] | None = None

    @property
    def bits(self) -> dict[str, tuple[int, int]]:
        """Return the bit widths of weight and input of every converted layer, by name."""
        return {layer.name: (layer.weight_bits, layer.activation_bits) for layer in self.converted}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a line for every idle layer, every unwanted large float part and every note."""
        lines = [
            f"{layer.name} ({layer.kind}) stays in floating point, {self._size(layer)}: "
            f"{layer.reason}"
            for layer in self.skipped
            if layer.reason == IDLE or (layer.reason not in BY_CHOICE and self._notable(layer))
        ]
        return (*lines, *self.notes)

    def after_calibration(
        self, model: nn.Module, kept: Iterable[str], macs: Mapping[str, int]
    ) -> ConversionReport:
        """Return the report of a calibrated model.

        Args:
            kept: names of the layers that calibration reached.
            macs: multiply-accumulates of each module's own code, by name; empty if not counted.
        """
        kept, total = set(kept), sum(macs.values())
        shares = {name: count / total for name, count in macs.items()} if total else {}
        idle = [
            SkippedLayer(layer.name, layer.kind, IDLE, layer.parameters)
            for layer in self.converted
            if layer.name not in kept
        ]
        known = {layer.name for layer in (*self.converted, *self.skipped)}
        found = [
            group
            for group in float_groups(model)
            if group.name not in known and shares.get(group.name, 0) > NOTABLE
        ]
        return replace(
            self,
            converted=tuple(layer for layer in self.converted if layer.name in kept),
            skipped=(*self.skipped, *idle, *found),
            macs=shares,
        )

    def summary(self) -> str:
        """Return a line that says how many layers have which bit widths."""
        counts: dict[str, int] = {}
        for layer in self.converted:
            width = f"w{layer.weight_bits}a{layer.activation_bits}"
            counts[width] = counts.get(width, 0) + 1
        widths = ", ".join(f"{count} at {width}" for width, count in sorted(counts.items()))
        return (
            f"recipe {self.recipe.name}: {len(self.converted)} layers quantized ({widths}), "
            f"{len(self.skipped)} left in floating point"
        )

    def __str__(self) -> str:
        rows = [
            (layer.name, layer.kind, f"w{layer.weight_bits}a{layer.activation_bits}")
            for layer in self.converted
        ]
        for layer in self.skipped:
            size = f" ({self._size(layer)})" if self._notable(layer) else ""
            rows.append((layer.name, layer.kind, f"float: {layer.reason}{size}"))
        rows.insert(0, ("layer", "type", "width"))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        table = [f"{name:{widths[0]}}  {kind:{widths[1]}}  {note}" for name, kind, note in rows]
        return "\n".join([self.summary(), *table, *self.notes])

    def _shares(self, layer: SkippedLayer) -> tuple[float, float]:
        return layer.parameters / max(1, self.total), (self.macs or {}).get(layer.name, 0.0)

    def _notable(self, layer: SkippedLayer) -> bool:
        return max(self._shares(layer)) > NOTABLE

    def _size(self, layer: SkippedLayer) -> str:
        parameters, macs = self._shares(layer)
        if self.macs and layer.name in self.macs:
            return f"{parameters:.1%} of parameters, {macs:.1%} of multiply-accumulates"
        return f"{parameters:.1%} of parameters"


def float_groups(model: nn.Module) -> list[SkippedLayer]:
    """Return every module that holds matrices other than the ``weight`` of a layer.

    Among them are attention with fused input projections, recurrent layers, layers whose weight is
    computed by spectral or weight norm, and modules that pass parameters to functions.
    """
    modules = dict(model.named_modules())
    groups = []
    for name, module in modules.items():
        own = {key: value for key, value in module._parameters.items() if value is not None}
        matrices = [key for key, value in own.items() if value.ndim >= 2]
        if not matrices or "weight" in matrices:
            continue
        size = sum(own[key].numel() for key in matrices)
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            name, _, tensor = name.rpartition(".parametrizations.")
            how = ", ".join(type(part).__name__.lstrip("_") for part in module)
            remedy = "torch.nn.utils.parametrize.remove_parametrizations makes it plain"
            reason = f"its {tensor} is computed by {how}; {remedy}"
            module = modules[name].__class__.__mro__[1]
            groups.append(SkippedLayer(name, module.__name__, reason, size))
            continue
        groups.append(SkippedLayer(name, type(module).__name__, _reason(matrices), size))
    return groups


def _reason(matrices: list[str]) -> str:
    if "weight_orig" in matrices:
        return "its weight is computed by spectral norm; torch.nn.utils.remove_spectral_norm helps"
    if "weight_v" in matrices:
        return "its weight is computed by weight norm; torch.nn.utils.remove_weight_norm helps"
    return f"its {', '.join(matrices)} is used by functions; only layers are quantized"
