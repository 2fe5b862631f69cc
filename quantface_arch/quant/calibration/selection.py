"""Choose each layer's balancing, its kind and exponents, by the error of the layer's output."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from quantface_arch.errors import check_patterns
from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import MAX_BITS, BalanceSpec, BranchSpec, QuantSpec
from quantface_arch.quant.nn.layers import QuantLayer, quant_layers
from quantface_arch.quant.ops.balance import LayerBalance, channel_scale
from quantface_arch.quant.ops.hadamard import MIN_WIDTH, Segments, segments_of
from quantface_arch.quant.ops.lowrank import choose_ranks, svd_factors
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar

__all__ = [
    "balance_layers",
    "best_factors",
    "branch_ranks",
    "kinds_for",
    "output_error",
    "unmet_balance",
]

# The full search of range ``mse`` would be slow for every candidate. While candidates are compared,
# the activation grid is tried at these fractions of the range only.
CLIPS = (1.0, 0.7, 0.45)
# For the same reason, one in this many fractions of the weight's range is tried.
COARSE = 6
# Candidates are compared on about this many output channels. Wider layers use every second, third,
# ... channel.
OUTPUTS = 256


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
    """Return the balancing of one layer that has the least error of all that the spec allows.

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

    Both follow from the layer's shape alone. If no rotation fits, the blocks are () and none of the
    kinds rotates.
    """
    kinds = spec.kinds(layer.name) if layer.channels >= MIN_WIDTH else ("none",)
    parts = sources if spec.sources == "split" else (layer.channels,)
    per_group = layer.channels // layer.groups
    segments = segments_of(parts if layer.groups == 1 else (per_group,), spec.block)
    if not segments:
        return tuple({"rotate": "none", "both": "scale"}.get(kind, kind) for kind in kinds), ()
    return kinds, tuple((count * layer.groups, size) for count, size in segments)


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
        wanted, found = spec.kinds(layer.name), kinds_for(layer, spec, parts)[0]
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
    seed = (spec.seed + zlib.crc32(layer.name.encode())) % 2**31
    scales = list(_scales(layer, observer, spec)) if {"scale", "both"} & {*kinds} else []
    if "none" in kinds:
        yield LayerBalance()
    if "scale" in kinds:
        yield from (LayerBalance(scale) for scale in scales)
    if "rotate" in kinds:
        yield LayerBalance(None, segments, seed)
    if "both" in kinds:
        yield from (LayerBalance(scale, segments, seed) for scale in scales)


def _scales(layer: QuantLayer, observer: ActivationObserver, spec: BalanceSpec) -> Iterator[Tensor]:
    rows, columns = layer.weight.shape[0], layer.weight.shape[1]
    grouped = layer.weight.detach().abs().view(layer.groups, rows // layer.groups, columns, -1)
    weight_absmax = grouped.amax(dim=(1, 3)).flatten().cpu()
    for alpha, beta in itertools.product(spec.alphas, spec.betas):
        yield channel_scale(observer.absmax, weight_absmax, alpha, beta)


@torch.no_grad()
def output_error(layer: QuantLayer, samples: Tensor, balance: LayerBalance, rank: int) -> float:
    """Return the mean squared error of a layer's output on samples, at the layer's bit widths.

    For wide layers, it is measured on some evenly spaced output channels only.

    Args:
        layer: neither balanced nor quantized yet; it is not changed.
        samples: float (crops, ...), inputs before balancing.
        balance: the balancing to try.
        rank: rank of the SVD branch that the layer will have.
    """
    samples = samples.to(layer.weight.device)
    trial = _copy(layer)
    trial.apply_balance(balance)
    x = trial.balance_input(samples)
    every = 1
    if layer.groups == 1:
        trial.add_branch(rank, 0)
        every = max(1, len(layer.weight) // OUTPUTS)
        _thin_out(trial, every)
    return _trial_error(trial, x, layer.product(samples, layer.weight[::every], None))


@torch.no_grad()
def best_factors(
    layer: QuantLayer, rank: int, iterations: int, samples: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the SVD branch's factors after several rounds of L_k = SVD(W − Q(W − L_{k−1})).

    The rounds end at the first that does not lower the output's error (SVDQuant, Li et al., 2025).

    Args:
        layer: balanced, not quantized yet; it is not changed.
        samples: float (crops, ...), balanced inputs; not read if there is only one round.

    Returns:
        down and up; None if there is only one round, which takes the weight's own singular vectors.
    """
    if iterations == 1 or not rank:
        return None
    samples = samples.to(layer.weight.device)
    wanted = layer.product(samples, layer.weight, None)
    factors, least = svd_factors(layer.weight, rank), float("inf")
    best = factors
    for _ in range(iterations):
        trial = _copy(layer)
        trial.add_branch(rank, 0, factors=factors)
        error = _trial_error(trial, samples, wanted)
        if error >= least:
            break
        best, least = factors, error
        factors = svd_factors(layer.weight - trial.weight, rank)
    return best


def _copy(layer: QuantLayer) -> QuantLayer:
    """Return an unbalanced layer that shares this one's weight and has the same bit widths."""
    return type(layer).from_float(layer, layer.weight_spec, layer.activation_spec, layer.name)


def _thin_out(trial: QuantLayer, every: int) -> None:
    """Keep one output channel in ``every`` of a layer that is not quantized yet."""
    trial.weight = nn.Parameter(trial.weight[::every], requires_grad=False)
    # There is one scale per output channel, or a single one, which the slice keeps.
    trial.weight_scale = trial.weight_scale[::every]
    trial.weight_zero_point = trial.weight_zero_point[::every]
    if trial.branch_down is not None and trial.branch_up is not None:
        trial.set_branch(trial.branch_down, trial.branch_up[::every])


def _trial_error(trial: QuantLayer, x: Tensor, wanted: Tensor) -> float:
    """Round the trial's weight, and return the mean squared error of its output.

    Args:
        x: balanced inputs.
        wanted: the output without quantization and bias.
    """
    if trial.rank:
        wanted = wanted - trial.branch(x)
    mean_square = x.movedim(trial.channel_axis, 0).flatten(1).square().mean(1)
    trial.quantize_weight(mean_square, COARSE)
    errors = []
    for low, high in _trial_ranges(x, trial.activation_spec):
        trial.set_activation_range(low, high)
        found = trial.product(trial.quantize_input(x), trial.weight, None)
        errors.append(float((found - wanted).square().mean()))
    return min(errors)


def _trial_ranges(x: Tensor, spec: QuantSpec) -> list[tuple[float, float]]:
    """Return the ranges of balanced inputs that a quantizer of this spec may end up with."""
    if spec.range == "percentile" and not spec.dynamic:
        keep = spec.percentile / 100
        # We use float64, because float32 cannot index a quantile among many values exactly.
        values = x.flatten().double()
        if spec.symmetric:
            high = float(values.abs().quantile(keep))
            return [(-high, high)]
        return [(float(values.quantile(1 - keep)), float(values.quantile(keep)))]
    low, high = float(x.min()), float(x.max())
    searched = spec.range == "mse" and not spec.dynamic
    return [(low * clip, high * clip) for clip in (CLIPS if searched else (1.0,))]
