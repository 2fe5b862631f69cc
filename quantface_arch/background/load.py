"""Load Real-ESRGAN's network from its authors' weights or from a checkpoint of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantface_arch.archs.build import build_arch
from quantface_arch.background.tiles import BackgroundUpsampler
from quantface_arch.background.weights import find_background
from quantface_arch.errors import QuantFaceError, listed, one_line
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant.checkpoint.metadata import KEY
from quantface_arch.quant.checkpoint.save_load import read_metadata, save_checkpoint
from quantface_arch.utils.disk_cache import cached
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.safetensors_header import check_header
from quantface_arch.utils.state_dict import PARAM_KEYS, fill, read_state

__all__ = ["load_background", "rrdbnet_options"]

# The input channels of the first layer give the scale: at x2, 2x2 pixels are folded into channels.
_SCALES = {3: 4, 12: 2}
# Increase this when the contents of the cached checkpoint change.
_VERSION = 1


def load_background(
    name_or_path: str,
    runtime: str = "auto",
    device: str = "cpu",
    offline: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> BackgroundUpsampler:
    """Load a network that enlarges backgrounds.

    Args:
        name_or_path: a name in ``PUBLISHED``, or the path of a BasicSR RRDBNet for x2 or x4. The
            file is a ``.pth`` (only tensors are unpickled), a plain ``.safetensors``, or a float or
            quantized checkpoint of this package.
        runtime: see ``quantface_arch.runtime``.
        device: a torch device.
        offline: never download.
        notify: receives one line about a download.

    Raises:
        QuantFaceError: the file does not exist, is damaged, or belongs to another network.
    """
    path = find_background(name_or_path, offline, notify)
    checkpoint = path if _is_checkpoint(path) else _as_checkpoint(path)
    arch = read_metadata(checkpoint)["arch"]
    channels = arch.get("num_in_ch"), arch.get("num_out_ch")
    scale = arch.get("scale", 4)
    if arch.get("type") != "RRDBNet" or channels != (3, 3) or scale not in _SCALES.values():
        raise QuantFaceError(f"{path}: found {arch}, expected an RRDBNet for x2 or x4, RGB to RGB")
    network = load_model(checkpoint, runtime=runtime, device=device)
    return BackgroundUpsampler(network, scale, torch.device(device))


def rrdbnet_options(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the type and options of the RRDBNet that fits a state dict, judging by its shapes.

    Args:
        path: path of the file, for messages.
        tensors: the state dict.

    Raises:
        QuantFaceError: the tensors do not fit an RRDBNet, or the scale is neither 2 nor 4.
    """
    try:
        first, growing = tensors["conv_first.weight"], tensors["body.0.rdb1.conv1.weight"]
        scale = _SCALES[first.shape[1]]
        out = tensors["conv_last.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise QuantFaceError(
            f"{path}: does not hold an RRDBNet for x2 or x4 (missing or of another size: {error}); "
            f"found {listed(tensors)}"
        ) from error
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


def _as_checkpoint(path: Path) -> Path:
    """Return the weights as a cached float checkpoint, which every runtime can load."""

    def make(folder: Path) -> dict[str, Any]:
        tensors = _tensors(path)
        arch = rrdbnet_options(path, tensors)
        network = build_arch(arch)
        fill(network, path, tensors)
        save_checkpoint(network, folder / name, arch, dtype=torch.float32)
        return {}

    name = "background.safetensors"
    folder, _ = cached("background", {"weights": file_digest(path), "version": _VERSION}, make)
    return folder / name


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
