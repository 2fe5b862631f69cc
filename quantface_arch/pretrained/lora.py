"""LoRA factors of a UNet, read from a diffusers file and merged into the weights by peft."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, listed
from quantface_arch.utils.safe_yaml_json import parse_json
from quantface_arch.utils.safetensors_header import check_header

__all__ = ["merge_lora"]

PREFIX = "unet."
DEFAULT_ALPHA = 16.0
# Newer versions of diffusers store alpha under this key in the header of a LoRA file.
HEADER = "lora_adapter_metadata"
# These LoRA variants have a merged weight other than W + (alpha/rank)·B·A.
VARIANTS = ("use_rslora", "use_dora", "alpha_pattern")

Factors = dict[str, tuple[Tensor, Tensor]]


def merge_lora(
    unet: UNet2DConditionModel, path: Path, alpha: float | None = None
) -> UNet2DConditionModel:
    """Add (alpha/rank)·B·A to the weights that a LoRA file names (Hu et al., 2021, section 4.1).

    For a k×k convolution A is k×k and B is 1×1. Keys are ``unet.LAYER.lora_A.weight`` and
    ``lora_B.weight``, or in older files ``lora.down`` and ``lora.up``, or in the oldest
    ``ATTENTION.processor.to_q_lora.down``. The rank is that of the tensors.

    Args:
        unet: changed in place.
        path: a ``.safetensors`` file.
        alpha: None takes the value in the file's header, or 16 if there is none.

    Returns:
        the same network, made of plain layers.

    Raises:
        QuantFaceError: the file is missing or unreadable, or a key fits no layer. The message names
            the file and the keys.
    """
    header, tensors = _read(path)
    factors = _pair(path, _peft_names(path, tensors), unet)
    return _merge(unet, path, factors, _alpha(path, header) if alpha is None else alpha)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise QuantFaceError(f"{path}: no such file; it must hold the UNet's LoRA weights")
    check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(HEADER, "{}")
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise QuantFaceError(f"{path}: not a readable .safetensors file ({error})") from error
    header = parse_json(f"{path}: metadata key {HEADER!r}", text)
    if not isinstance(header, dict):
        raise QuantFaceError(f"{path}: metadata key {HEADER!r}: found {header!r}, not a mapping")
    return header, tensors


def _alpha(path: Path, header: Mapping[str, Any]) -> float:
    for option in VARIANTS:
        if header.get(f"{PREFIX}{option}"):
            raise QuantFaceError(
                f"{path}: the header sets {option}, but only plain LoRA can be merged"
            )
    alpha = header.get(f"{PREFIX}lora_alpha", DEFAULT_ALPHA)
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise QuantFaceError(f"{path}: header: lora_alpha: found {alpha!r}, expected a number")
    return float(alpha)


def _peft_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    foreign = [key for key in tensors if not key.startswith(PREFIX)]
    if foreign or not tensors:
        raise QuantFaceError(
            f"{path}: keys that do not belong to a UNet: {listed(foreign) or 'no key'}"
        )
    named = convert_unet_state_dict_to_peft(
        {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    )
    if len(named) < len(tensors):
        raise QuantFaceError(f"{path}: holds a factor under two styles of key")
    return named


def _pair(path: Path, named: dict[str, Tensor], unet: nn.Module) -> Factors:
    """Return the factors (A, B) by layer; every key must be used and fit its layer's shape."""
    layers = dict(unet.named_modules())
    factors: Factors = {}
    left = set(named)
    for key in named:
        layer, a_key = key.removesuffix(".lora_A.weight"), key
        b_key = f"{layer}.lora_B.weight"
        module = layers.get(layer)
        if (
            a_key.endswith(".lora_A.weight")
            and b_key in named
            and _fits(module, named[a_key], named[b_key])
        ):
            factors[layer] = named[a_key], named[b_key]
            left -= {a_key, b_key}
    if left:
        shapes = [f"{PREFIX}{key} {tuple(named[key].shape)}" for key in sorted(left)]
        raise QuantFaceError(f"{path}: keys that fit no layer of the UNet: {listed(shapes)}")
    return factors


def _fits(module: nn.Module | None, a: Tensor, b: Tensor) -> bool:
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return False
    rank = a.shape[0]
    rows, *columns = module.weight.shape
    ones = (1,) * (len(columns) - 1)
    return tuple(a.shape) == (rank, *columns) and tuple(b.shape) == (rows, rank, *ones)


def _merge(
    unet: UNet2DConditionModel, path: Path, factors: Factors, alpha: float
) -> UNet2DConditionModel:
    # peft is slow to import, and only models from a folder of OSDFace's files need it.
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    ranks = {a.shape[0] for a, _ in factors.values()}
    if len(ranks) != 1:
        raise QuantFaceError(f"{path}: found ranks {sorted(ranks)}; expected one rank throughout")
    config = LoraConfig(
        r=ranks.pop(),
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  (peft takes fractions too)
        target_modules="|".join(re.escape(layer) for layer in factors),
        init_lora_weights=False,
    )
    wrapped = get_peft_model(unet, config)
    state = {
        f"base_model.model.{layer}.lora_{name}.weight": value
        for layer, pair in factors.items()
        for name, value in zip("AB", pair, strict=True)
    }
    unexpected = set_peft_model_state_dict(wrapped, state).unexpected_keys
    if unexpected:
        raise QuantFaceError(f"{path}: peft does not take {listed(unexpected)}")
    with torch.no_grad():
        return cast("UNet2DConditionModel", wrapped.merge_and_unload())
