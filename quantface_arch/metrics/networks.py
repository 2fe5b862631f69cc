"""The networks of metrics: find their weights, and keep one copy of each in memory."""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.weights import FILES as DETECTORS
from quantface_arch.losses.weights import ARCFACE, find_weights

if TYPE_CHECKING:
    import torch

__all__ = ["FILES", "MetricUnavailable", "find_files", "network"]

TORCHVISION = "https://download.pytorch.org/models"
PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
CLIP = (
    "https://openaipublic.azureedge.net/clip/models/"
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
)
FACEXLIB = ARCFACE.rsplit("/", 1)[0]
# For every file of a metric, this gives the cache in which the file's library looks for it, and the
# URL at which it is published.
FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "lpips": (("checkpoints", f"{TORCHVISION}/alexnet-owt-7be5be79.pth"),),
    "dists": (
        ("checkpoints", f"{TORCHVISION}/vgg16-397923af.pth"),
        ("pyiqa", f"{PYIQA}/DISTS_weights-f5e65c96.pth"),
    ),
    "musiq": (("pyiqa", f"{PYIQA}/musiq_koniq_ckpt-e95806b9.pth"),),
    "maniqa": (("pyiqa", f"{PYIQA}/ckpt_koniq10k.pt"),),
    "clipiqa": (("clip", f"{CLIP}/RN50.pt"),),
    "fid": (("pyiqa", f"{PYIQA}/pt_inception-2015-12-05-6726825d.pth"),),
    "deg": (("facexlib", ARCFACE),),
    "lmd": (("facexlib", f"{FACEXLIB}/alignment_WFLW_4HG.pth"),),
    "lmd_detector": (("facexlib", DETECTORS["retinaface_mobile0.25"].url),),
}
OF_PYIQA = ("dists", "musiq", "maniqa", "clipiqa", "fid")
# Modules of this package and their functions, which map (metric, its files, device) to the network,
# or to a function that runs it. They are imported on first use, because torch takes seconds.
BUILDERS = {
    "lpips": ("deep", "build_lpips"),
    **dict.fromkeys(OF_PYIQA, ("deep", "build_pyiqa")),
    "deg": ("face", "build_arcface"),
    "lmd": ("face", "build_alignment"),
    "lmd_detector": ("face", "build_detector"),
}
HINT = "name its folder with weights: FOLDER (quantface evaluate: --weights-dir, or --download)"


class MetricUnavailable(QuantFaceError):
    """A metric lacks a package or weights; the message begins with the metric's name."""


def find_files(
    metric: str, weights: str | os.PathLike[str] | None = None, download: bool = False
) -> tuple[Path, ...]:
    """Return the files of weights of a metric, in the order of ``FILES``.

    Args:
        weights: a folder that is searched before the cache of the file's own library.
        download: download missing files, into ``weights`` if given, else into the cache.

    Raises:
        MetricUnavailable: a file or pyiqa is missing, or the download failed.
    """
    if metric in OF_PYIQA and importlib.util.find_spec("pyiqa") is None:
        raise MetricUnavailable(f"{metric}: pyiqa is not installed: pip install -e '.[metrics]'")
    found = []
    for cache, url in FILES[metric]:
        places = [] if weights is None else [Path(weights)]
        places.append(_cache(cache))
        name = url.rsplit("/", 1)[-1]
        place = next((place for place in places if (place / name).is_file()), places[0])
        try:
            found.append(find_weights(metric, url, place, download=download, hint=HINT))
        except QuantFaceError as error:
            raise MetricUnavailable(str(error)) from error
    return tuple(found)


def _cache(name: str) -> Path:
    if name == "facexlib":
        import facexlib

        return Path(facexlib.__file__).parent / "weights"
    import torch

    return Path(torch.hub.get_dir()) / name


def network(
    metric: str,
    weights: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
) -> Any:
    """Return a metric's network, which is built once per process, files and device.

    Raises:
        MetricUnavailable: see ``find_files``.
        QuantFaceError: a file is damaged or of another network.
    """
    return _built(metric, find_files(metric, weights, download), str(device))


@functools.cache
def _built(metric: str, files: tuple[Path, ...], device: str) -> Any:
    module, name = BUILDERS[metric]
    build = getattr(import_module(f"quantface_arch.metrics.{module}"), name)
    return build(metric, files, device)
