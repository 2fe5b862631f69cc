"""Any architecture of BasicSR's registry, with its weights, by one entry of an options file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.quant.nn.traits import set_traits
from quantface_arch.utils.plain import plain
from quantface_arch.utils.state_dict import PARAM_KEYS, fill, read_state

__all__ = ["QuantFaceArch", "checkpoint_arch"]

NAME = "QuantFaceArch"
PICKLED = (".pth", ".pt", ".ckpt")


def QuantFaceArch(
    arch: Mapping[str, Any] | None = None,
    weights: str | None = None,
    param_key: str | None = None,
    base: str | None = None,
) -> nn.Module:
    """Build an architecture and load its weights.

    The network itself is returned, not a wrapper: the layers' names in bit maps, patterns and
    checkpoints are the architecture's own. Its attribute ``arch_options`` is what
    ``save_checkpoint`` takes as its architecture.

    Args:
        arch: type and options of any architecture in BasicSR's registry; may be left out where the
            weights say it (shipped models, checkpoints of this project, OSDFace's folder).
        weights: a shipped model's name, a ``.safetensors`` checkpoint of this project, a folder of
            OSDFace's files, or a ``.pth`` of BasicSR; None: random. A quantized checkpoint gives
            the quantized network.
        param_key: where in a ``.pth`` the weights lie; None takes ``params_ema`` if there, else
            ``params``, else the whole file.
        base: for a folder of OSDFace's files, where Stable Diffusion 2.1-base is.

    Raises:
        QuantFaceError: unknown architecture, no such file, or weights of another architecture; the
            message names the file, the key, and what was found and expected.
    """
    if arch is not None and (not isinstance(arch, Mapping) or arch.get("type") == NAME):
        raise QuantFaceError(f"{NAME} option arch: found {arch!r}, expected {{type: RRDBNet, ...}}")
    if weights is None:
        return _random(arch)
    path = resolve_model(weights)
    if path.is_dir():
        return _from_folder(path, arch, base)
    if path.suffix in PICKLED:
        net = _random(arch)
        fill(net, path, _params(path, param_key))
        return net
    return _from_checkpoint(path, arch)


def _random(arch: Mapping[str, Any] | None) -> nn.Module:
    if arch is None:
        raise QuantFaceError(f"{NAME} option arch: missing; give type and options of a network")
    net = build_arch(arch)
    set_traits(net, arch_options=dict(arch))
    return net


def _params(path: Path, param_key: str | None) -> dict[str, Any]:
    keys = PARAM_KEYS if param_key is None else (param_key,)
    state = read_state(path, keys)
    # Saved from a network wrapped for several devices.
    return {key.removeprefix("module."): value for key, value in state.items()}


def checkpoint_arch(path: Path, arch: Mapping[str, Any] | None) -> dict[str, Any]:
    """A checkpoint's architecture, with what ``arch`` says beside it.

    Raises:
        QuantFaceError: the file is no checkpoint, or of another architecture.
    """
    from quantface_arch.quant.checkpoint.save_load import read_metadata

    options = read_metadata(path)["arch"]
    for key, wanted in (arch or {}).items():
        if key in options and options[key] != plain(wanted):
            raise QuantFaceError(
                f"{path}: of another arch: {key}: found {options[key]!r}, expected {wanted!r}"
            )
    return {**options, **(arch or {})}


def _from_checkpoint(path: Path, arch: Mapping[str, Any] | None) -> nn.Module:
    from quantface_arch.quant.checkpoint.save_load import load_checkpoint

    options = checkpoint_arch(path, arch)
    net = load_checkpoint(path, lambda _: build_arch(options))
    set_traits(net, arch_options=options)
    return net


def _from_folder(path: Path, arch: Mapping[str, Any] | None, base: str | None) -> nn.Module:
    from quantface_arch.pretrained.osdface_folder import load_osdface_folder

    options = dict(arch or {"type": "OSDFace"})
    kind = options.pop("type", None)
    if kind != "OSDFace":
        raise QuantFaceError(f"{path}: weights of another arch: OSDFace, expected {kind!r}")
    preset = options.pop("preset", "osdface")
    return load_osdface_folder(path, base=base, preset=preset, overrides=options)
