"""Post-training quantization of a network: the stages of the method, and all in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.calibrate import Calibration, calibrating
from quantface_arch.quant.calibration.merge import check_mergeable
from quantface_arch.quant.calibration.selection import balance_layers, best_factors, branch_ranks
from quantface_arch.quant.calibration.store import CalibrationStore
from quantface_arch.quant.checkpoint.save_load import round_float_parts
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.convert import BitMap, ConversionReport, convert
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.utils.distributed import Shard

__all__ = ["balance_stage", "batches", "branch_stage", "calibration_stage", "prepare", "quantize"]

Images = Tensor | Iterable[Tensor]
# Width at which the range of an input before balancing is kept, for runtimes that skip balancing.
UNBALANCED_BITS = 8


def quantize(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    calibration_images: Images,
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
    bits: BitMap | None = None,
    balance: Mapping[str, LayerBalance] | None = None,
    shard: Shard | None = None,
) -> ConversionReport:
    """Quantize a network in place, as ``prepare`` does, ready to be saved.

    What stays in floating point is rounded to float16, as checkpoints hold it; arguments, result
    and errors are those of ``prepare``.
    """
    report = prepare(
        model, recipe, calibration_images, batch_size, progress, store, bits, balance, shard
    )
    round_float_parts(model)
    return report


def prepare(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    calibration_images: Images,
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
    bits: BitMap | None = None,
    balance: Mapping[str, LayerBalance] | None = None,
    shard: Shard | None = None,
) -> ConversionReport:
    """Convert a network's layers, balance them, add branches, fix ranges, round weights; in place.

    The result runs as simulated ("reference") execution: low-bit values in floating point, no
    faster than before. The float model's own parameters stay untouched, so a copy that shares them
    is still the full-precision model.

    Args:
        model: any module whose ``forward`` takes one float tensor of pictures (N, 3, H, W).
        recipe: a setting's name such as ``w4a8``, a mapping (see ``Recipe.from_dict``) or a Recipe.
        calibration_images: pictures as the network sees them in use: one tensor (N, 3, H, W), or an
            iterable of pictures (3, H, W) and batches (n, 3, H, W), read once or twice.
        batch_size: pictures that go through the network at a time.
        progress: show a bar on stderr, with an end in sight if the pictures have a ``len``.
        store: where statistics are kept while calibrating, and picked up after a crash.
        bits: widths by layer, instead of the recipe's.
        balance: balancing by layer that was chosen before, instead of the recipe's.
        shard: of the processes (see ``Shard.joined``) among which the pictures are shared out; each
            ends with the same model, see ``merge`` for how near to one process's.

    Returns:
        which layers were quantized to which width, and which were not.

    Raises:
        QuantFaceError: a wrong recipe, no pictures, a layer that saw none of them, NaN or infinity.
    """
    recipe = Recipe.of(recipe)
    report = convert(model, recipe, bits)
    # Asked now: ranks that do not fit are better found before minutes of calibration.
    branch_ranks(model, recipe.branch)
    if balance is not None or recipe.balance.wanted:
        if isinstance(calibration_images, Iterator):
            calibration_images = list(calibration_images)
        first = store.stage("balance") if store else None
        balance_stage(
            model, recipe, calibration_images, batch_size, progress, first, balance, shard
        )
    keep_samples = recipe.branch.iterations > 1
    calibration = calibration_stage(
        model, calibration_images, batch_size, progress, store, keep_samples, shard
    )
    branch_stage(model, recipe, calibration)
    return report


def check_plan(model: nn.Module, plan: Mapping[str, LayerBalance]) -> None:
    """Check that a plan of balancing is one of this converted model.

    Raises:
        QuantFaceError: the plan lacks a layer, names one that does not exist or is of other widths.
    """
    layers = {layer.name: layer for layer in quant_layers(model)}
    for name in (*plan, *layers):
        if name not in layers or name not in plan:
            where = "the model" if name in plan else "the balance file"
            raise QuantFaceError(f"balance: {where} has no layer {name!r}")
    for name, layer in layers.items():
        layer.check_balance(plan[name])


def apply_plan(model: nn.Module, plan: Mapping[str, LayerBalance]) -> None:
    """Balance a converted model's layers as a plan says.

    Raises:
        QuantFaceError: see ``check_plan``; nothing was changed.
    """
    check_plan(model, plan)
    for layer in quant_layers(model):
        layer.apply_balance(plan[layer.name])


def balance_stage(
    model: nn.Module,
    recipe: Recipe,
    images: Images,
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
    plan: Mapping[str, LayerBalance] | None = None,
    shard: Shard | None = None,
) -> dict[str, LayerBalance]:
    """Watch a converted model run, then choose and apply the balancing of every layer.

    Args:
        plan: balancing that was chosen before; the inputs' ranges before it are still wanted.

    Returns:
        the balancing by layer, as ``save_balance`` takes it.

    Raises:
        QuantFaceError: see ``apply_plan`` and ``balance_layers``.
    """
    if plan is not None:
        check_plan(model, plan)
    watched = calibrating(model, keep_samples=plan is None)
    watched = _watch(model, watched, images, batch_size, progress, store, "balancing", shard)
    _keep_input_ranges(model, watched)
    if plan is not None:
        apply_plan(model, plan)
        return dict(plan)
    find_sources = getattr(model, "input_sources", None)
    sources = find_sources() if find_sources else None
    return balance_layers(model, watched, recipe, sources, progress, shard)


def calibration_stage(
    model: nn.Module,
    images: Images,
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
    keep_samples: bool = False,
    shard: Shard | None = None,
) -> Calibration:
    """Watch the inputs, balanced if they are, of a converted model's layers.

    Args:
        keep_samples: keep crops of the inputs, which an SVD branch in several rounds needs.
    """
    watched = calibrating(model, keep_samples, keep_hessians=True)
    return _watch(model, watched, images, batch_size, progress, store, "calibrating", shard)


def branch_stage(model: nn.Module, recipe: Recipe, calibration: Calibration) -> None:
    """Add the branches, fix all ranges, round what the branches leave of the weights.

    Raises:
        QuantFaceError: see ``branch_ranks`` and ``Calibration.check``.
    """
    calibration.check()
    ranks = branch_ranks(model, recipe.branch)
    for layer in quant_layers(model):
        svd, distill = ranks.get(layer.name, (0, 0))
        samples = calibration.observers[layer.name].samples
        factors = best_factors(layer, svd, recipe.branch.iterations, samples)
        layer.add_branch(svd, distill, factors=factors)
    calibration.apply()


def _keep_input_ranges(model: nn.Module, calibration: Calibration) -> None:
    for layer in quant_layers(model):
        spec = layer.activation_spec.with_bits(UNBALANCED_BITS)
        low, high = calibration.observers[layer.name].range(spec)
        layer.act_low.fill_(low)
        layer.act_high.fill_(high)


def _watch(
    model: nn.Module,
    watched: AbstractContextManager[Calibration],
    images: Images,
    batch_size: int,
    progress: bool,
    store: CalibrationStore | None,
    what: str,
    shard: Shard | None,
) -> Calibration:
    shard = shard or Shard()
    if batch_size < 1:
        raise QuantFaceError(f"batch_size: found {batch_size}, allowed are numbers from 1")
    if shard.count > 1:
        check_mergeable(quant_layers(model))
        if store:
            store = store.stage(f"part{shard.rank + 1}of{shard.count}")
    was_training = model.training
    model.eval()
    try:
        with watched as calibration:
            bar = tqdm(images, desc=what, unit="picture", disable=not progress)
            _run(model, calibration, bar, batch_size, store, shard)
            calibration.merge(shard)
    finally:
        model.train(was_training)
    return calibration


@torch.no_grad()
def _run(
    model: nn.Module,
    calibration: Calibration,
    images: Iterable[Tensor],
    batch_size: int,
    store: CalibrationStore | None,
    shard: Shard,
) -> None:
    done = store.load(calibration) if store else 0
    device = next(model.parameters()).device
    seen, ends = 0, []
    for index, batch in enumerate(batches(images, batch_size)):
        ends.append(batch.movedim(1, 0).flatten(1).aminmax(dim=1))
        if index == 0 and not done and not shard.is_first:
            model(batch.to(device))
            calibration.forget()
        if index % shard.count != shard.rank:
            continue
        seen += 1
        if seen > done:
            if shard.count > 1:
                calibration.seek(index)
            model(batch.to(device))
            if store:
                store.save(calibration, seen)
    if not ends:
        raise QuantFaceError("calibration_images: found none, at least one is needed")
    low = torch.stack([end.min for end in ends]).amin(0)
    flat = torch.stack([end.max for end in ends]).amax(0) == low
    if bool(flat.any()):
        channel = int(flat.nonzero()[0])
        raise QuantFaceError(
            f"calibration_images: channel {channel} is constant ({float(low[channel]):g}) in all "
            "pictures; give real degraded faces"
        )


def batches(images: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of at most ``batch_size`` pictures; a picture of another size begins a new one."""
    waiting: list[Tensor] = []
    for item in images:
        if not isinstance(item, Tensor) or item.ndim not in (3, 4):
            found = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
            raise QuantFaceError(
                f"calibration_images: found {found}, wanted are (3, H, W) or (n, 3, H, W)"
            )
        for picture in item.unsqueeze(0) if item.ndim == 3 else item:
            if waiting and picture.shape != waiting[0].shape:
                yield torch.stack(waiting)
                waiting = []
            waiting.append(picture)
            if len(waiting) == batch_size:
                yield torch.stack(waiting)
                waiting = []
    if waiting:
        yield torch.stack(waiting)
