"""Choose each layer's balancing, its kind and exponents, by the error of the layer's output."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from quantface_arch.errors import check_patterns
from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.calibration.trial import output_error
from quantface_arch.quant.config.branch_spec import BranchSpec
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import (
    MAX_BITS,
    ROTATED,
    SCALED,
    UNROTATED,
    BalanceSpec,
)
from quantface_arch.quant.nn.layers import QuantLayer, quant_layers
from quantface_arch.quant.ops.balance import LayerBalance, channel_scale
from quantface_arch.quant.ops.hadamard import MIN_WIDTH, Segments, segments_of
from quantface_arch.quant.ops.lowrank import choose_ranks
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar

__all__ = [
    "balance_layers",
    "branch_ranks",
    "kinds_for",
    "unmet_balance",
]


def balance_layers(
    model: nn.Module,
    calibration: Calibration,
    recipe: Recipe,
    sources: Mapping[str, tuple[int, ...]] | None = None,
    progress: bool = True,
    shard: Shard | None = None,
) -> dict[str, LayerBalance]:
    """Choose and apply the balancing of every layer of a converted model.

    Args:
        calibration: statistics of the same model, made with ``keep_samples``.
        sources: for inputs that are concatenations, the channels of each part, by layer name.
        progress: show a progress bar on stderr.
        shard: this process's share of the layers.

    Returns:
        the balancing of every layer, including those of kind ``none``.

    Raises:
        QuantFaceError: see ``Calibration.check``; or a pattern of ``recipe.balance.layers`` matches
            no layer.
    """
    calibration.check()
    layers = {layer.name: layer for layer in quant_layers(model)}
    spec = recipe.balance
    check_patterns("balance layers", spec.layers, layers)
    ranks = branch_ranks(model, recipe.branch)
    shard = shard or Shard()
    chosen = []
    names = shard.share(list(layers))
    for name in progress_bar(names, desc="choosing", unit="layer", disable=not progress):
        layer = layers[name]
        parts = (sources or {}).get(name, (layer.channels,))
        svd, _ = ranks.get(name, (0, 0))
        chosen.append(choose(layer, calibration.observers[name], spec, parts, svd))
    plan = dict(zip(layers, shard.whole(shard.gather(chosen)), strict=True))
    for name, balance in plan.items():
        layers[name].apply_balance(balance)
    return plan


def branch_ranks(model: nn.Module, spec: BranchSpec) -> dict[str, tuple[int, int]]:
    """Return the ranks (SVD, distillation) of the layers of a converted model that get branches.

    Layers with grouped channels get none, nor do those whose weights and inputs both have 8 bits.

    Raises:
        QuantFaceError: see ``choose_ranks``.
    """
    weights = {
        layer.name: layer.weight
        for layer in quant_layers(model)
        if layer.groups == 1 and min(layer.weight_spec.bits, layer.activation_spec.bits) < MAX_BITS
    }
    return choose_ranks(weights, spec, sum(value.numel() for value in model.parameters()))


def choose(
    layer: QuantLayer,
    observer: ActivationObserver,
    spec: BalanceSpec,
    sources: tuple[int, ...],
    rank: int,
) -> LayerBalance:
    """Return the balancing of one layer that has the least error of all that it is offered.

    Layers with fewer than ``MIN_WIDTH`` channels stay unbalanced. Rotations without a fitting
    Hadamard order are left out.
    """
    candidates = list(candidates_for(layer, observer, spec, sources))
    if len(candidates) == 1:
        return candidates[0]
    errors = [output_error(layer, observer.samples, item, rank) for item in candidates]
    return candidates[errors.index(min(errors))]


def kinds_for(
    layer: QuantLayer, spec: BalanceSpec, sources: tuple[int, ...]
) -> tuple[tuple[str, ...], Segments]:
    """Return the kinds of balancing that a layer may choose from, and the blocks of its rotation.

    Both follow from the layer's shape and bit widths alone. If no rotation fits, the blocks are ()
    and none of the kinds rotates.
    """
    kinds = _offered(layer, spec) if layer.channels >= MIN_WIDTH else ("none",)
    parts = sources if spec.sources == "split" else (layer.channels,)
    per_group = layer.channels // layer.groups
    sources = parts if layer.groups == 1 else (per_group,)
    segments = segments_of(sources, spec.block, spec.regular)
    if not segments:
        return tuple(UNROTATED.get(kind, kind) for kind in kinds), ()
    return kinds, tuple((count * layer.groups, size) for count, size in segments)


def _offered(layer: QuantLayer, spec: BalanceSpec) -> tuple[str, ...]:
    """Return the kinds of balancing that a spec offers to a layer.

    With 8-bit weights and inputs, rotations are left out where there is a choice: weights of 8 bits
    hardly need them, and runtimes do not rotate inputs of 8 bits.
    """
    kinds = spec.kinds(layer.name)
    if layer.weight_spec.bits == layer.activation_spec.bits == MAX_BITS:
        kinds = tuple(kind for kind in kinds if kind not in ROTATED) or kinds
    return kinds


def unmet_balance(
    layers: Iterable[QuantLayer],
    spec: BalanceSpec,
    sources: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """Return a line for every layer that cannot have a kind of balancing that a spec names.

    Args:
        sources: see ``balance_layers``.
    """
    lines = []
    for layer in layers:
        parts = (sources or {}).get(layer.name, (layer.channels,))
        wanted, found = _offered(layer, spec), kinds_for(layer, spec, parts)[0]
        narrow = layer.channels // layer.groups < MIN_WIDTH
        missing = [kind for kind in wanted if kind not in found]
        # A narrow layer needs no line if the spec allows it to stay unbalanced.
        if not missing or (narrow and "none" in wanted):
            continue
        width = " + ".join(map(str, parts)) + " channels"
        width += f" in {layer.groups} groups" if layer.groups > 1 else ""
        reason = f"narrower than {MIN_WIDTH}" if narrow else "which no Hadamard order divides"
        lines.append(
            f"{layer.name}: found {width}, {reason}; in place of balance {', '.join(missing)} "
            f"it gets {' or '.join(dict.fromkeys(found))}"
        )
    return lines


def candidates_for(
    layer: QuantLayer, observer: ActivationObserver, spec: BalanceSpec, sources: tuple[int, ...]
) -> Iterator[LayerBalance]:
    """Yield all balancings of one layer that a spec allows, the simplest first."""
    kinds, segments = kinds_for(layer, spec, sources)
    regular = spec.regular
    seed = 0 if regular else (spec.seed + zlib.crc32(layer.name.encode())) % 2**31
    scales = list(_scales(layer, observer, spec)) if {*SCALED} & {*kinds} else []
    if "none" in kinds:
        yield LayerBalance()
    if "scale" in kinds:
        yield from (LayerBalance(scale) for scale in scales)
    if "rotate" in kinds:
        yield LayerBalance(None, segments, seed, regular)
    if "both" in kinds:
        yield from (LayerBalance(scale, segments, seed, regular) for scale in scales)


def _scales(layer: QuantLayer, observer: ActivationObserver, spec: BalanceSpec) -> Iterator[Tensor]:
    rows, columns = layer.weight.shape[0], layer.weight.shape[1]
    grouped = layer.weight.detach().abs().view(layer.groups, rows // layer.groups, columns, -1)
    weight_absmax = grouped.amax(dim=(1, 3)).flatten().cpu()
    for alpha, beta in itertools.product(spec.alphas, spec.betas):
        yield channel_scale(observer.absmax, weight_absmax, alpha, beta)
