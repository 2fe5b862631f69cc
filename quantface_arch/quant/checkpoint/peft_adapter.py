"""The low-rank branches of a quantized network, saved and loaded as an adapter in peft's format.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json`` (LoRA; Hu et al., 2021).
peft loads it onto a float network whose layers hold the residual weights. A layer's branch acts on
the layer's balanced input: where a layer is balanced, give peft the balanced network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.lowrank import full_rank
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json
from quantface_arch.utils.safetensors_header import check_header

__all__ = ["load_adapter", "save_adapter"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
NAME = re.compile(r"[\w.]+")
# LoRA variants whose branch is not (alpha/rank)·B·A.
VARIANTS = ("use_rslora", "use_dora", "lora_bias")

Factors = dict[str, tuple[Tensor, Tensor]]


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the branches of all layers that have one, as peft's LoRA with alpha = rank.

    Raises:
        QuantFaceError: no layer has a branch, or peft cannot express a layer's (it knows neither
            dilated convolutions nor padding other than by zeros).
    """
    tensors, ranks = {}, {}
    for name, layer in _layers(model).items():
        if layer.branch_down is None or layer.branch_up is None:
            continue
        _check_geometry(name, layer)
        taps = (1,) * (layer.weight.ndim - 2)
        up = layer.branch_up.reshape(*layer.branch_up.shape, *taps)
        for key, value in (("lora_A", layer.branch_down), ("lora_B", up)):
            tensors[f"{PREFIX}{name}.{key}.weight"] = value.detach().float().cpu().contiguous()
        ranks[name] = layer.rank
    if not ranks:
        raise QuantFaceError("adapter: no layer of the model has a branch to save")
    with atomic_path(Path(folder) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with atomic_path(Path(folder) / CONFIG) as temporary:
        temporary.write_text(json.dumps(_config(ranks), indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Make an adapter's factors the branches of a quantized network, whose weights stay.

    Ranks may differ from those of the branches that are replaced. Nothing is changed unless
    everything fits. Parameters are made anew: choose what to train (``trainable``) afterwards.

    Args:
        folder: written by ``save_adapter``, or by peft for the same layers.

    Raises:
        QuantFaceError: missing or damaged files, a LoRA variant, layers that the network lacks or
            branches that the adapter lacks, shapes or ranks that do not fit; the message names the
            layer.
    """
    folder = Path(folder)
    config, factors = _read_config(folder / CONFIG), _read_factors(folder / WEIGHTS)
    layers = _layers(model)
    for name in factors:
        if name not in layers:
            raise QuantFaceError(f"{folder}: the model has no quantized layer {name!r}")
        _check_fit(folder, name, layers[name], *factors[name])
    for name, layer in layers.items():
        if layer.rank and name not in factors:
            raise QuantFaceError(f"{folder}: layer {name!r} has a branch, but none in the adapter")
    for name, (down, up) in factors.items():
        device = layers[name].weight.device
        up = up.flatten(1) * _scaling(config, name, len(down))
        layers[name].set_branch(down.to(device), up.to(device))


def _layers(model: nn.Module) -> dict[str, QuantLayer]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)
    }


def _check_geometry(name: str, layer: QuantLayer) -> None:
    dilation, padding = getattr(layer, "dilation", ()), getattr(layer, "padding_mode", "zeros")
    if set(dilation) - {1} or padding != "zeros" or layer.groups > 1:
        raise QuantFaceError(
            f"layer {name}: found dilation {dilation}, padding {padding}, {layer.groups} groups; "
            "peft's format allows 1, zeros and 1"
        )


def _config(ranks: Mapping[str, int]) -> dict[str, Any]:
    # peft takes the first pattern that ends a layer's name: longer names must come first.
    pattern = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True)}
    largest = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": "|".join(re.escape(name) for name in ranks),
    }


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise QuantFaceError(f"{path}: not the configuration of a LoRA adapter")
    for option in VARIANTS:
        if config.get(option):
            raise QuantFaceError(f"{path}: sets {option}; only plain LoRA can be loaded")
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise QuantFaceError(f"{path}: alpha_pattern: found {alphas!r}, a mapping is wanted")
    for name, alpha in {"lora_alpha": config.get("lora_alpha", 8), **alphas}.items():
        if type(alpha) not in (int, float):
            raise QuantFaceError(f"{path}: alpha of {name!r}: found {alpha!r}, a number is wanted")
        # Expressions of others could take for ever to match.
        if not NAME.fullmatch(name):
            raise QuantFaceError(
                f"{path}: alpha_pattern: found {name!r}; names of layers are allowed"
            )
    return config


def _read_factors(path: Path) -> Factors:
    check_header(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise QuantFaceError(f"{path}: missing, or not readable ({error})") from error
    factors: Factors = {}
    for key in tensors:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        pair = tuple(f"{PREFIX}{name}.{kind}.weight" for kind in ("lora_A", "lora_B"))
        if key == pair[0] and pair[1] in tensors:
            factors[name] = tensors[pair[0]].float(), tensors[pair[1]].float()
        elif key.removesuffix(".lora_B.weight") + ".lora_A.weight" not in tensors:
            raise QuantFaceError(f"{path}: key {key}: not one of a pair of LoRA factors")
    if not factors:
        raise QuantFaceError(f"{path}: holds no LoRA factors")
    return factors


def _check_fit(folder: Path, name: str, layer: QuantLayer, down: Tensor, up: Tensor) -> None:
    rank = len(down)
    rows, *columns = layer.weight.shape
    wanted = (rank, *columns), (rows, rank, *(1,) * (len(columns) - 1))
    if layer.groups > 1 or (tuple(down.shape), tuple(up.shape)) != wanted:
        raise QuantFaceError(
            f"{folder}: layer {name!r}: found factors {tuple(down.shape)} and {tuple(up.shape)}, "
            f"its weight is {tuple(layer.weight.shape)} in {layer.groups} groups"
        )
    if not 0 < rank <= full_rank(layer.weight):
        raise QuantFaceError(
            f"{folder}: layer {name!r}: found rank {rank}, allowed is 1 to "
            f"{full_rank(layer.weight)}"
        )


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha/rank of a layer: by its own name, else by peft's rule, the first pattern that ends it.

    peft sorts the patterns that it writes, so that a shorter name may come before the layer's own.
    """
    alphas = config.get("alpha_pattern") or {}
    matching = (key for key in alphas if f".{name}".endswith(f".{key}"))
    pattern = name if name in alphas else next(matching, None)
    return (config.get("lora_alpha", 8) if pattern is None else alphas[pattern]) / rank
