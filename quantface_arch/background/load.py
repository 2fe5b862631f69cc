"""Load a network that enlarges backgrounds, from its authors' weights or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from quantface_arch.background.tiles import CONTEXT, GRID, TILE, BackgroundUpsampler
from quantface_arch.background.weights import find_background
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.foreign import as_checkpoint
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant.checkpoint.save_load import read_metadata

__all__ = ["load_background"]


def load_background(
    name_or_path: str,
    runtime: str = "auto",
    device: str = "cpu",
    offline: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> BackgroundUpsampler:
    """Load a network that enlarges backgrounds.

    Args:
        name_or_path: a name in ``PUBLISHED``, or the path of weights or of a checkpoint, see
            ``as_checkpoint``. The network maps RGB images to larger ones.
        runtime: see ``quantface_arch.runtime``.
        device: a torch device.
        offline: never download.
        notify: receives one line about a download.

    Raises:
        QuantFaceError: the file does not exist, is damaged, or belongs to another network.
    """
    path = find_background(name_or_path, offline, notify)
    checkpoint = as_checkpoint(path)
    arch = read_metadata(checkpoint)["arch"]
    scale = arch.get("scale", 4 if arch.get("type") == "RRDBNet" else 1)
    if scale < 2 or not {arch.get("num_in_ch", 3), arch.get("num_out_ch", 3)} == {3}:
        raise QuantFaceError(f"{path}: found {arch}, expected a network that enlarges RGB images")
    network = load_model(checkpoint, runtime=runtime, device=device)
    grid = math.lcm(GRID, arch.get("multiple", 1))
    sides = (-(-side // grid) * grid for side in (TILE, CONTEXT))
    return BackgroundUpsampler(network, scale, torch.device(device), *sides, grid=grid)
