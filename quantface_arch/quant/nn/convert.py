"""Replace a network's float layers by quantized ones, and report what was replaced."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from quantface_arch.errors import QuantFaceError, check_patterns
from quantface_arch.quant.config.bitmap import in_order
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import MAX_BITS
from quantface_arch.quant.nn.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quantface_arch.quant.nn.report import (
    NOTABLE,
    ConversionReport,
    ConvertedLayer,
    SkippedLayer,
    float_groups,
)
from quantface_arch.quant.nn.traits import set_traits

__all__ = [
    "BitMap",
    "ConversionReport",
    "ConvertedLayer",
    "SkippedLayer",
    "convert",
    "convert_layers",
    "register",
    "replace_module",
    "restore_float",
]

# This maps exact float types to quantized types. Subclasses are not converted, because they may
# compute something else.
TABLE: dict[type[nn.Module], type[QuantLayer]] = {}

# A bit map maps a layer's name to (bits of the weight, bits of the input).
BitMap = Mapping[str, tuple[int, int]]


def register(float_type: type[nn.Module], quant_type: type[QuantLayer]) -> None:
    """Make ``convert`` replace layers of exactly ``float_type``.

    Raises:
        QuantFaceError: the type is registered already.
    """
    if float_type in TABLE:
        raise QuantFaceError(
            f"layer type {float_type.__name__}: already converted to {TABLE[float_type].__name__}"
        )
    TABLE[float_type] = quant_type


register(nn.Linear, QuantLinear)
register(nn.Conv1d, QuantConv1d)
register(nn.Conv2d, QuantConv2d)


def convert(model: nn.Module, recipe: Recipe, bits: BitMap | None = None) -> ConversionReport:
    """Replace the layers that a recipe selects, in place, by layers that are not calibrated yet.

    Matrices outside of layers are reported if they hold more than 1 % of the parameters. A module
    that occurs under several names is replaced under all of them and listed under the first.

    Args:
        bits: bit widths of exactly the layers that the recipe selects, instead of the recipe's.

    Raises:
        QuantFaceError: a pattern of the recipe matches no layer, no layer is left to convert, or
            the bit map names other layers.
    """
    layers = {name: module for name, module in model.named_modules() if _has_matrix(module)}
    for what in ("include", "exclude", "eight_bit"):
        check_patterns(f"recipe {what}", getattr(recipe, what), layers)
    chosen, skipped = _choose(layers, recipe)
    total = sum(parameter.numel() for parameter in model.parameters())
    known = {layer.name for layer in skipped}
    skipped += [
        group
        for group in float_groups(model)
        if group.name not in known and group.parameters > NOTABLE * total
    ]
    if not chosen:
        raise QuantFaceError(f"recipe {recipe.name}: no layer of the model can be quantized by it")
    if bits is not None:
        chosen = _checked_map(bits, chosen)
    converted = [
        ConvertedLayer(name, type(layers[name]).__name__, *widths, _parameters(layers[name]))
        for name, widths in chosen.items()
    ]
    convert_layers(model, recipe, chosen)
    return ConversionReport(recipe, tuple(converted), tuple(skipped), total)


def _choose(
    layers: Mapping[str, nn.Module], recipe: Recipe
) -> tuple[dict[str, tuple[int, int]], list[SkippedLayer]]:
    """Return the bit widths of the layers that a recipe quantizes, and a list of the others."""
    chosen: dict[str, tuple[int, int]] = {}
    skipped = []
    for name, module in layers.items():
        reason = _reason_to_skip(name, module, recipe)
        if reason is None:
            high = _matches(name, recipe.eight_bit)
            widths = (recipe.weights.bits, recipe.activations.bits)
            chosen[name] = (MAX_BITS, MAX_BITS) if high else widths
        else:
            kind, size = type(module).__name__, _parameters(module)
            skipped.append(SkippedLayer(name, kind, reason, size))
    return chosen, skipped


def convert_layers(model: nn.Module, recipe: Recipe, bits: BitMap) -> None:
    """Replace exactly the layers of a bit map, in place, by layers with the recipe's quantizers.

    ``model.quant_recipe`` keeps the recipe for the checkpoint.

    Raises:
        QuantFaceError: a name is no layer of the model, or a layer cannot be quantized.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[nn.Module, QuantLayer] = {}
    for name, (weight_bits, activation_bits) in bits.items():
        module = modules.get(name)
        if module is None:
            raise QuantFaceError(f"bit map: the model has no layer {name!r}")
        reason = _reason_not_convertible(name, module)
        if reason is not None:
            raise QuantFaceError(f"bit map: layer {name!r} cannot be quantized: {reason}")
        try:
            weights = recipe.weights.with_bits(weight_bits)
            activations = recipe.activations.with_bits(activation_bits)
        except QuantFaceError as error:
            raise QuantFaceError(f"bit map: layer {name!r}: {error}") from None
        layers[module] = TABLE[type(module)].from_float(module, weights, activations, name)
        layers[module].branch_bits = recipe.branch.bits
    for module, layer in layers.items():
        replace_module(model, module, layer)
    _leave_fast_path(model)
    _refuse_plain_saving(model)
    set_traits(model, quant_recipe=recipe)


def _refuse_plain_saving(model: nn.Module) -> None:
    """Make ``save_pretrained`` of modules with quantized layers raise QuantFaceError.

    It would write unrounded weights under the names of float layers, so that another network would
    be loaded.
    """
    for module in model.modules():
        has_method = callable(getattr(module, "save_pretrained", None))
        if has_method and any(isinstance(part, QuantLayer) for part in module.modules()):
            vars(module)["save_pretrained"] = _refused


def _refused(*_: Any, **__: Any) -> None:
    raise QuantFaceError(
        "save_pretrained would write the weights before they were rounded, as those of a plain "
        "network: quantize with quantface_arch.diffusers.quantize_model, or save with "
        "quantface_arch.save_checkpoint"
    )


def _leave_fast_path(model: nn.Module) -> None:
    """Make torch's transformer encoders call their quantized layers.

    In evaluation mode, encoders would otherwise pass the layers' weights to one fused function,
    which ignores quantizers, balancing and branches. Encoders without quantized layers are not
    changed.
    """
    for module in model.modules():
        if not any(isinstance(part, QuantLayer) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            # The layer takes its fused path only for the activations 1 (ReLU) and 2 (GELU).
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            # Only the fused path supports nested tensors.
            module.use_nested_tensor = False


def restore_float(model: nn.Module, layer: QuantLayer) -> None:
    """Replace a layer that is neither balanced nor quantized by its float layer."""
    float_type = next(kind for kind, quant_type in TABLE.items() if quant_type is type(layer))
    module = float_type(**layer.geometry(layer), device="meta")
    module.weight = layer.weight
    module.register_parameter("bias", cast("nn.Parameter | None", layer.bias))
    replace_module(model, layer, module.train(layer.training))


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another one under every name that it has in a model."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)


def _checked_map(bits: BitMap, wanted: BitMap) -> dict[str, tuple[int, int]]:
    unknown = " is not one that the recipe quantizes"
    return in_order(bits, wanted, "bit map", unknown, " is missing; the recipe quantizes it")


def _has_matrix(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _reason_to_skip(name: str, module: nn.Module, recipe: Recipe) -> str | None:
    if _matches(name, recipe.exclude):
        return "excluded by the recipe"
    if not _matches(name, recipe.include):
        return "not included by the recipe"
    return _reason_not_convertible(name, module)


def _reason_not_convertible(name: str, module: nn.Module) -> str | None:
    if isinstance(module, QuantLayer):
        return "already quantized"
    if type(module) not in TABLE:
        known = ", ".join(kind.__name__ for kind in TABLE)
        return f"its type is none of {known}"
    if name == "":
        return "it is the whole model; put it inside another module"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    return None
