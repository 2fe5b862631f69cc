"""Which balancing suits a layer: its kind and exponents, by the measured error of its output."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import check_patterns
from quantface_arch.quant.balance import LayerBalance, channel_scale
from quantface_arch.quant.calibrate import Calibration
from quantface_arch.quant.hadamard import MIN_WIDTH, segments_of
from quantface_arch.quant.layers import QuantLayer, quant_layers
from quantface_arch.quant.lowrank import choose_ranks
from quantface_arch.quant.observer import ActivationObserver
from quantface_arch.quant.recipe import Recipe
from quantface_arch.quant.specs import MAX_BITS, BalanceSpec, BranchSpec

__all__ = ["balance_layers", "branch_ranks", "output_error"]

# Exponents that a search tries.
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
# Fractions of its range that an activation grid is tried at while candidates are compared.
CLIPS = (1.0, 0.7, 0.45)
# Of the weight range's hundredths, one in so many is tried meanwhile.
COARSE = 6


def balance_layers(
    model: nn.Module,
    calibration: Calibration,
    recipe: Recipe,
    sources: Mapping[str, tuple[int, ...]] | None = None,
    progress: bool = True,
) -> dict[str, LayerBalance]:
    """Choose and apply the balancing of every layer of a converted model.

    Args:
        calibration: of the same model, made with ``keep_samples``.
        sources: channels of each part of inputs that are concatenations, by layer name.
        progress: show a bar on stderr.

    Returns:
        the balancing of every layer, also of those that have none.

    Raises:
        QuantFaceError: see ``Calibration.check``; a pattern of ``recipe.balance.layers`` that
            matches no layer.
    """
    calibration.check()
    layers = {layer.name: layer for layer in quant_layers(model)}
    spec = recipe.balance
    check_patterns("balance layers", spec.layers, layers)
    ranks = branch_ranks(model, recipe.branch)
    plan = {}
    bar = tqdm(layers.items(), desc="choosing", unit="layer", disable=not progress)
    for name, layer in bar:
        parts = (sources or {}).get(name, (layer.channels,))
        svd, _ = ranks.get(name, (0, 0))
        plan[name] = choose(layer, calibration.observers[name], spec, parts, svd)
        layer.apply_balance(plan[name])
    return plan


def branch_ranks(model: nn.Module, spec: BranchSpec) -> dict[str, tuple[int, int]]:
    """Ranks (SVD, distillation) of the layers of a converted model that get branches.

    Layers with grouped channels get none, nor do those that stand at 8 bits throughout.

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
    """The balancing of one layer: of all that the spec allows, the one with the least error.

    Widths below ``MIN_WIDTH`` stay as they are; a rotation that no Hadamard order fits is left out.
    """
    candidates = list(candidates_for(layer, observer, spec, sources))
    if len(candidates) == 1:
        return candidates[0]
    errors = [output_error(layer, observer.samples, item, rank) for item in candidates]
    return candidates[errors.index(min(errors))]


def candidates_for(
    layer: QuantLayer, observer: ActivationObserver, spec: BalanceSpec, sources: tuple[int, ...]
) -> Iterator[LayerBalance]:
    """All balancings of one layer that a spec allows, the plainest first."""
    wanted = (kind for pattern, kind in spec.layers.items() if fnmatchcase(layer.name, pattern))
    kind = next(wanted, spec.kind)
    if layer.channels < MIN_WIDTH or kind == "none":
        yield LayerBalance()
        return
    parts = sources if spec.sources == "split" else (layer.channels,)
    per_group = layer.channels // layer.groups
    segments = segments_of(parts if layer.groups == 1 else (per_group,), spec.block)
    segments = tuple((count * layer.groups, size) for count, size in segments)
    seed = (spec.seed + zlib.crc32(layer.name.encode())) % 2**31
    rotations = [segments] if segments else []
    scales = list(_scales(layer, observer, spec))
    if kind == "auto":
        yield LayerBalance()
    if kind in ("scale", "auto") or (kind == "both" and not rotations):
        yield from (LayerBalance(scale) for scale in scales)
    if kind in ("rotate", "auto"):
        yield from (LayerBalance(None, item, seed) for item in rotations)
    if kind in ("both", "auto"):
        yield from (LayerBalance(scale, item, seed) for item in rotations for scale in scales)
    if kind == "rotate" and not rotations:
        yield LayerBalance()


def _scales(layer: QuantLayer, observer: ActivationObserver, spec: BalanceSpec) -> Iterator[Tensor]:
    rows, columns = layer.weight.shape[0], layer.weight.shape[1]
    grouped = layer.weight.detach().abs().view(layer.groups, rows // layer.groups, columns, -1)
    weight_absmax = grouped.amax(dim=(1, 3)).flatten().cpu()
    alphas = ALPHAS if isinstance(spec.alpha, str) else (spec.alpha,)
    for alpha in alphas:
        yield channel_scale(observer.absmax, weight_absmax, alpha, spec.beta)


@torch.no_grad()
def output_error(layer: QuantLayer, samples: Tensor, balance: LayerBalance, rank: int) -> float:
    """Mean squared error of a layer's output on samples of its input, at the layer's widths.

    Args:
        samples: float (crops, ...), inputs as they arrive, before balancing.
        balance: tried on the layer, which is neither balanced nor quantized yet and stays so.
        rank: of the SVD branch that the layer will have.
    """
    samples = samples.to(layer.weight.device)
    wanted = layer.product(samples, layer.weight, None)
    trial = type(layer).from_float(layer, layer.weight_spec, layer.activation_spec, layer.name)
    trial.apply_balance(balance)
    x = trial.balance_input(samples)
    if layer.groups == 1:
        trial.add_branch(rank, 0)
    if trial.rank:
        wanted = wanted - trial.branch(x)
    mean_square = x.movedim(layer.channel_axis, 0).flatten(1).square().mean(1)
    trial.quantize_weight(mean_square, COARSE)
    low, high = float(x.min()), float(x.max())
    errors = []
    for clip in CLIPS:
        trial.set_activation_range(low * clip, high * clip)
        found = trial.product(trial.quantize_input(x), trial.weight, None)
        errors.append(float((found - wanted).square().mean()))
    return min(errors)
