"""Post-training quantization of a network: each stage of the method, and one call for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.calibrate import (
    Calibration,
    calibrating,
    check_hessians_fit,
    unmet_rounding,
)
from quantface_arch.quant.calibration.run import CalibrationData, Images, watch
from quantface_arch.quant.calibration.selection import (
    balance_layers,
    branch_ranks,
    unmet_balance,
)
from quantface_arch.quant.calibration.store import CalibrationStore
from quantface_arch.quant.calibration.trial import best_factors
from quantface_arch.quant.checkpoint.save_load import round_float_parts
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.convert import BitMap, ConversionReport, convert
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.utils.distributed import Shard

__all__ = ["balance_stage", "branch_stage", "calibration_stage", "prepare", "quantize"]

# Some runtimes skip balancing, so we keep the range of the unbalanced input at this bit width.
UNBALANCED_BITS = 8


def quantize(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    calibration_images: Images | CalibrationData,
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
    bits: BitMap | None = None,
    balance: Mapping[str, LayerBalance] | None = None,
    shard: Shard | None = None,
) -> ConversionReport:
    """Quantize a network in place, as ``prepare`` does, and make it ready to be saved.

    Parameters that stay in floating point are rounded to float16, the precision of checkpoints.

    Args:
        model, recipe, bits, balance: see ``prepare``.
        calibration_images, batch_size, progress, store, shard: see ``CalibrationData``. If
            ``calibration_images`` is a ``CalibrationData``, the other four are ignored.

    Returns:
        the report of ``prepare``.

    Raises:
        QuantFaceError: see ``prepare``.
    """
    data = calibration_images
    if not isinstance(data, CalibrationData):
        data = CalibrationData(data, batch_size, progress, store, shard)
    report = prepare(model, recipe, data, bits, balance)
    round_float_parts(model)
    return report


def prepare(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    data: CalibrationData | Images,
    bits: BitMap | None = None,
    balance: Mapping[str, LayerBalance] | None = None,
) -> ConversionReport:
    """Convert a network in place: balance its layers, add branches, fix ranges, round weights.

    The result simulates quantization in floating point (the "reference" runtime), so it runs no
    faster than before. The float model's own parameters are not changed, so a copy that shares them
    is still the full-precision model.

    Args:
        model: any module that takes images (N, 3, H, W), or the calls in ``data``.
        recipe: a recipe's name such as ``w4a8``, a mapping (see ``Recipe.from_dict``) or a Recipe.
        data: the calibration images. They are read twice if layers are balanced, else once.
        bits: bit widths by layer, used instead of the recipe's.
        balance: balancing by layer from an earlier run, used instead of the recipe's.

    Returns:
        the layers that were quantized, with their bit widths, and the others.

    Raises:
        QuantFaceError: a wrong recipe or wrong images, or Hessians that do not fit into memory.
    """
    recipe = Recipe.of(recipe)
    data = CalibrationData.of(data)
    report = convert(model, recipe, bits)
    # We check ranks and memory here, so that they do not fail after hours of calibration.
    branch_ranks(model, recipe.branch)
    _check_hessians(model, data)
    report = replace(report, notes=_unmet(model, recipe, chosen=balance is not None))
    if balance is not None or recipe.balance.wanted:
        data = data.reusable()
        balance_stage(model, recipe, data.stage("balance"), balance)
    keep_samples = recipe.branch.iterations > 1
    calibration = calibration_stage(model, data, keep_samples)
    branch_stage(model, recipe, calibration)
    return report.after_calibration(model, calibration.observers, calibration.macs)


def _unmet(model: nn.Module, recipe: Recipe, chosen: bool) -> tuple[str, ...]:
    """Return a line for everything that the recipe asks for but a layer cannot have.

    If ``chosen``, the balancing comes from an earlier run and is not checked.
    """
    layers = list(quant_layers(model))
    lines = (
        [] if chosen else unmet_balance(layers, recipe.balance, traits_of(model).input_sources())
    )
    return (*lines, *unmet_rounding(layers))


def check_plan(model: nn.Module, plan: Mapping[str, LayerBalance]) -> None:
    """Check that a balancing plan fits this converted model.

    Raises:
        QuantFaceError: the plan lacks a layer, names an unknown one, or does not fit a layer.
    """
    layers = {layer.name: layer for layer in quant_layers(model)}
    for name in (*plan, *layers):
        if name not in layers or name not in plan:
            where = "the model" if name in plan else "the balance file"
            raise QuantFaceError(f"balance: {where} has no layer {name!r}")
    for name, layer in layers.items():
        layer.check_balance(plan[name])


def apply_plan(model: nn.Module, plan: Mapping[str, LayerBalance]) -> None:
    """Balance a converted model's layers according to a plan.

    Raises:
        QuantFaceError: see ``check_plan``; the model is then unchanged.
    """
    check_plan(model, plan)
    for layer in quant_layers(model):
        layer.apply_balance(plan[layer.name])


def balance_stage(
    model: nn.Module,
    recipe: Recipe,
    data: CalibrationData | Images,
    plan: Mapping[str, LayerBalance] | None = None,
) -> dict[str, LayerBalance]:
    """Watch a converted model run, then choose and apply the balancing of every layer.

    Args:
        plan: balancing from an earlier run, applied instead of choosing one. The model still runs,
            to find the ranges of the unbalanced inputs.

    Returns:
        the balancing by layer, as ``save_balance`` takes it. Layers that no image reached become
        float layers; no balancing is chosen for them.

    Raises:
        QuantFaceError: see ``apply_plan`` and ``balance_layers``.
    """
    names = [layer.name for layer in quant_layers(model)]
    if plan is not None:
        check_plan(model, plan)
    data = CalibrationData.of(data)
    watched = watch(model, calibrating(model, keep_samples=plan is None), data, "balancing")
    _keep_input_ranges(model, watched)
    # Layers that no image reached are float layers by now.
    reached = {layer.name for layer in quant_layers(model)}
    if plan is not None:
        apply_plan(model, {name: plan[name] for name in reached})
        return dict(plan)
    sources = traits_of(model).input_sources()
    chosen = balance_layers(model, watched, recipe, sources, data.progress, data.shard)
    return {name: chosen.get(name, LayerBalance()) for name in names}


def calibration_stage(
    model: nn.Module, data: CalibrationData | Images, keep_samples: bool = False
) -> Calibration:
    """Collect statistics of the layers' inputs in a converted model, after any balancing.

    Layers that no image reaches become float layers again.

    Args:
        keep_samples: keep crops of the inputs, which an SVD branch in several rounds needs.

    Raises:
        QuantFaceError: GPTQ's Hessians do not fit into memory, or see ``watch``.
    """
    data = CalibrationData.of(data)
    _check_hessians(model, data)
    watched = calibrating(model, keep_samples, keep_hessians=True)
    return watch(model, watched, data, "calibrating")


def _check_hessians(model: nn.Module, data: CalibrationData) -> None:
    # A store holds a second copy of all statistics while it writes them.
    check_hessians_fit(model, copies=2 if data.store else 1)


def branch_stage(model: nn.Module, recipe: Recipe, calibration: Calibration) -> None:
    """Add the branches, fix all ranges, and round the residual weights.

    Raises:
        QuantFaceError: see ``branch_ranks`` and ``Calibration.check``.
    """
    add_branches(model, recipe, calibration)
    calibration.apply()


def add_branches(model: nn.Module, recipe: Recipe, calibration: Calibration) -> None:
    """Move a part of every balanced weight to a branch; nothing is rounded yet.

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


def _keep_input_ranges(model: nn.Module, calibration: Calibration) -> None:
    for layer in quant_layers(model):
        spec = layer.activation_spec.with_bits(UNBALANCED_BITS)
        low, high = calibration.observers[layer.name].range(spec)
        layer.act_low.fill_(low)
        layer.act_high.fill_(high)
