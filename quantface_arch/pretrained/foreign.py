"""Files of weights of other projects, as checkpoints of this one that every runtime can load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.spandrel_net import describe, registry
from quantface_arch.errors import QuantFaceError, listed, one_line
from quantface_arch.quant.checkpoint.metadata import KEY
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.utils.disk_cache import cached
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.safetensors_header import check_header
from quantface_arch.utils.state_dict import PARAM_KEYS, fill, read_state

__all__ = ["PICKLED", "as_checkpoint", "rrdbnet_options"]

# Scale by the input channels of the first layer: at x2 the network folds 2x2 pixels into channels.
_SCALES = {3: 4, 12: 2}
_RRDBNET = ("body.", "conv_")
# Increase this when the contents of the cached checkpoint change.
_VERSION = 3
PICKLED = (".pth", ".pt", ".ckpt")


def as_checkpoint(path: Path) -> Path:
    """Return a checkpoint of this project as it is, and other weights as a cached checkpoint.

    An RRDBNet for x2 or x4, the network of ESRGAN and Real-ESRGAN, is recognized here; any other
    architecture is recognized by spandrel.

    Args:
        path: a file of weights, ``.pth`` (only tensors are unpickled) or ``.safetensors``.

    Raises:
        QuantFaceError: the file is damaged, its architecture is unknown, or spandrel is missing.
    """
    if path.suffix not in (*PICKLED, ".safetensors") or _is_checkpoint(path):
        return path

    def make(folder: Path) -> dict[str, Any]:
        network, arch = _recognized(path, _tensors(path))
        save_checkpoint(network, folder / name, arch, dtype=torch.float32)
        return {}

    name = "weights.safetensors"
    folder, _ = cached("foreign", {"weights": file_digest(path), "version": _VERSION}, make)
    return folder / name


def rrdbnet_options(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the type and options of the RRDBNet that fits a state dict, judging by its shapes.

    Returns:
        None if the state dict does not fit an RRDBNet, or the scale is neither 2 nor 4.
    """
    if not all(key.startswith(_RRDBNET) for key in tensors):
        return None
    try:
        first, growing = tensors["conv_first.weight"], tensors["body.0.rdb1.conv1.weight"]
        scale = _SCALES[first.shape[1]]
        out = tensors["conv_last.weight"].shape[0]
    except (KeyError, IndexError):
        return None
    blocks = [int(found[1]) for key in tensors if (found := re.match(r"body\.(\d+)\.", key))]
    return {
        "type": "RRDBNet",
        "num_in_ch": 3,
        "num_out_ch": out,
        "scale": scale,
        "num_feat": first.shape[0],
        "num_block": max(blocks) + 1,
        "num_grow_ch": growing.shape[0],
    }


def _recognized(path: Path, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a state dict, with its weights, and its type and options."""
    arch = rrdbnet_options(tensors)
    if arch is not None:
        network = build_arch(arch)
        fill(network, path, tensors)
        return network, arch
    found = _descriptor(path, tensors)
    arch = describe(found)
    network = build_arch(arch)
    network.get_submodule("net").load_state_dict(found.model.state_dict())
    return network, arch


def _descriptor(path: Path, tensors: dict[str, Tensor]) -> Any:
    """Return spandrel's description of a state dict.

    Raises:
        QuantFaceError: spandrel does not know the architecture, or cannot load the state dict.
    """
    architectures = registry()
    try:
        return architectures.load(tensors)
    except Exception as error:
        # An unknown architecture, or one that was recognized wrongly.
        raise QuantFaceError(
            f"{path}: none of the {len(list(architectures))} architectures that spandrel knows "
            f"({type(error).__name__} {one_line(error)[:200]}); found {listed(tensors)}"
        ) from error


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this package."""
    if path.suffix != ".safetensors":
        return False
    check_header(path)
    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise QuantFaceError(f"{path}: {one_line(error)}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict, without the prefixes that some programs add to its keys."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    else:
        tensors = read_state(path, PARAM_KEYS)
    for prefix in (*PARAM_KEYS, "module"):
        # scripts/convert_pickle.py adds the parameter keys, DataParallel adds "module".
        own = {key: tensors[key] for key in tensors if key.startswith(f"{prefix}.")}
        if own:
            tensors = {key.removeprefix(f"{prefix}."): value for key, value in own.items()}
    return tensors
