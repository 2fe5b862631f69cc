"""The registry entry that builds any architecture and loads its weights from an options file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import get_root_logger
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.obtain import obtain
from quantface_arch.pretrained.foreign import PICKLED, as_checkpoint
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.quant.nn.traits import set_traits
from quantface_arch.utils.plain import plain
from quantface_arch.utils.state_dict import PARAM_KEYS, fill, read_state

__all__ = ["QuantFaceArch", "checkpoint_arch"]

NAME = "QuantFaceArch"


def QuantFaceArch(
    arch: Mapping[str, Any] | None = None,
    weights: str | None = None,
    param_key: str | None = None,
    base: str | None = None,
) -> nn.Module:
    """Build an architecture and load its weights.

    The result is the network itself, not a wrapper. Bit maps, patterns and checkpoints therefore
    use the architecture's own layer names. The network's trait ``arch_options`` holds the
    architecture for ``save_checkpoint``.

    Args:
        arch: type and options of any architecture in BasicSR's registry. It may be omitted where
            the weights define it (shipped models, checkpoints, a folder of OSDFace's files, and
            whatever spandrel recognizes).
        weights: the name of a shipped model or of one on the hub (see ``obtain``), a
            ``.safetensors`` checkpoint of this project, a folder of OSDFace's files, or a ``.pth``
            file of BasicSR. None leaves the weights random. A quantized checkpoint gives the
            quantized network.
        param_key: the key of the weights in a ``.pth`` file. None takes ``params_ema`` if it
            exists, else ``params``, else the whole file.
        base: folder or hub id of Stable Diffusion 2.1-base, for a folder of OSDFace's files.

    Raises:
        QuantFaceError: the architecture is unknown, or the weights are missing or of another one.
    """
    if arch is not None and (not isinstance(arch, Mapping) or arch.get("type") == NAME):
        raise QuantFaceError(f"{NAME} option arch: found {arch!r}, expected {{type: RRDBNet, ...}}")
    if weights is None:
        return _random(arch)
    if not isinstance(weights, str):
        raise QuantFaceError(f"{NAME} option weights: found {weights!r}, allowed is a string")
    log = get_root_logger().warning
    path = resolve_model(obtain(weights, FetchOptions(base=base), log))
    if str(path) != weights:
        # The base was fetched with the weights.
        base = None
    if path.is_dir():
        return _from_folder(path, arch, base)
    if arch is None:
        path = as_checkpoint(path)
    if path.suffix in PICKLED:
        net = _random(arch)
        fill(net, path, _params(path, param_key))
        return net
    return _from_checkpoint(path, arch)


def _random(arch: Mapping[str, Any] | None) -> nn.Module:
    if arch is None:
        raise QuantFaceError(f"{NAME} option arch: missing; give the type and options of a network")
    net = build_arch(arch)
    set_traits(net, arch_options=dict(arch))
    return net


def _params(path: Path, param_key: str | None) -> dict[str, Any]:
    keys = PARAM_KEYS if param_key is None else (param_key,)
    state = read_state(path, keys)
    # A network that is wrapped for several devices is saved with this prefix.
    return {key.removeprefix("module."): value for key, value in state.items()}


def checkpoint_arch(path: Path, arch: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a checkpoint's architecture, extended by ``arch``.

    Raises:
        QuantFaceError: the file is not a checkpoint, or is of another architecture.
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
