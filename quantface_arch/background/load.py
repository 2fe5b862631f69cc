"""Load a network that maps images in tiles, from its authors' weights or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

from quantface_arch.archs.build import scale_of
from quantface_arch.archs.spandrel_net import FACE_NETWORKS
from quantface_arch.background.tiles import CONTEXT, GRID, TILE, BackgroundUpsampler
from quantface_arch.background.weights import find_background
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.foreign import as_checkpoint
from quantface_arch.pretrained.on_arrays import load_on_arrays
from quantface_arch.quant.checkpoint.save_load import read_metadata

__all__ = ["load_background"]


def load_background(
    name_or_path: str,
    runtime: str = "auto",
    device: str = "cpu",
    offline: bool = False,
    notify: Callable[[str], None] = lambda message: None,
    whole: bool = False,
) -> BackgroundUpsampler:
    """Load a network that enlarges backgrounds, or one that restores whole images.

    Args:
        name_or_path: a name in ``PUBLISHED``, or the path of weights or of a checkpoint, see
            ``as_checkpoint``. The network maps RGB images to larger ones.
        runtime: see ``quantface_arch.runtime``.
        device: a torch device.
        offline: never download.
        notify: receives one line about a download.
        whole: also take a network whose images are not larger, unless it restores faces.

    Raises:
        QuantFaceError: the file does not exist, is damaged, or belongs to another network.
    """
    option = "--model" if whole else "--bg-upsampler"
    path = find_background(name_or_path, offline, notify, option)
    checkpoint = as_checkpoint(path)
    arch = read_metadata(checkpoint)["arch"]
    scale = scale_of(arch)
    channels = {arch.get("num_in_ch", 3), arch.get("num_out_ch", 3)}
    least_scale = 1 if whole and "scale" in arch else 2
    if scale < least_scale or channels != {3} or arch.get("id") in FACE_NETWORKS:
        what = "maps whole RGB images" if whole else "enlarges RGB images"
        raise QuantFaceError(f"{path}: found {arch}, expected a network that {what}")
    network = load_on_arrays(checkpoint, runtime, device)
    grid = math.lcm(GRID, arch.get("multiple", 1))
    tile, context = (-(-side // grid) * grid for side in (TILE, CONTEXT))
    least = tile + 2 * context if arch.get("square") else arch.get("minimum", 1)
    return BackgroundUpsampler(network, scale, tile, context, grid, least)
