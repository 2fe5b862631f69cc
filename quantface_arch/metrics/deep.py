"""Metrics by networks that were trained on human judgement, and FID.

LPIPS comes from the ``lpips`` package. The others come from ``pyiqa`` (the extra ``metrics``), with
its default settings. Nothing is downloaded unless ``download`` is set.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError
from quantface_arch.losses.network_losses import QuantFaceLPIPSLoss
from quantface_arch.metrics.networks import FILES, MetricUnavailable, network
from quantface_arch.metrics.tensors import as_tensors
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.state_dict import unpickle

__all__ = [
    "calculate_quantface_clipiqa",
    "calculate_quantface_dists",
    "calculate_quantface_fid",
    "calculate_quantface_lpips",
    "calculate_quantface_maniqa",
    "calculate_quantface_musiq",
]


def build_lpips(_metric: str, files: tuple[Path, ...], device: str) -> Callable[..., Tensor]:
    """Build LPIPS on AlexNet, for images (N, 3, H, W) in [0, 1]."""
    loss = QuantFaceLPIPSLoss(weights=files[0]).to(device)
    return lambda found, wanted: loss(2 * found - 1, 2 * wanted - 1)


def build_pyiqa(metric: str, files: tuple[Path, ...], device: str) -> nn.Module:
    """Build a metric of pyiqa, for RGB images (N, 3, H, W) in [0, 1], or for two folders (FID)."""
    # A path in place of a backbone's name keeps pyiqa from checking, and overwriting, the file.
    options = {"backbone": str(files[0])} if metric == "clipiqa" else {}
    try:
        import pyiqa  # pyright: ignore[reportMissingImports]  (the extra metrics)

        with _offline(metric, files), contextlib.redirect_stdout(sys.stderr):
            return pyiqa.create_metric(metric, device=torch.device(device), **options)
    except ImportError as error:
        raise MetricUnavailable(f"{metric}: pyiqa cannot be imported: {error}") from error
    except QuantFaceError:
        raise
    except Exception as error:
        # torch raises many types of exceptions for damaged and foreign files.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        names = " and ".join(map(str, files))
        raise QuantFaceError(f"pyiqa cannot build {metric} from {names}: {first_line}") from error


def check_digest(metric: str, file: Path, url: str) -> None:
    """Check that a file is the published one, byte for byte.

    Args:
        url: where the file is published; the path contains its SHA-256 in hexadecimal.

    Raises:
        QuantFaceError: the file differs from the published one.
    """
    found = file_digest(file)
    if f"/{found}/" not in url:
        raise QuantFaceError(
            f"{metric} of {file}: it holds a program, and is not the published one: found SHA-256 "
            f"{found}, expected the file of {url}"
        )


@contextlib.contextmanager
def _offline(metric: str, files: tuple[Path, ...]) -> Iterator[None]:
    """Make pyiqa find exactly these files where it looks before it downloads."""
    import timm  # pyright: ignore[reportMissingImports]  (it comes with pyiqa)
    from pyiqa.utils import download_util  # pyright: ignore[reportMissingImports]  (as above)

    create, cache, hub = timm.create_model, download_util.DEFAULT_CACHE_DIR, torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        for (place, url), file in zip(FILES[metric], files, strict=True):
            # CLIP's file is TorchScript, which is a program. pyiqa unpickles the others unchecked.
            if place == "clip":
                check_digest(metric, file, url)
            else:
                unpickle(file)
            (Path(folder) / place).mkdir(exist_ok=True)
            (Path(folder) / place / file.name).symlink_to(file.resolve())
        torch.hub.set_dir(folder)
        download_util.DEFAULT_CACHE_DIR = f"{folder}/pyiqa"
        # MANIQA's file also holds its backbone, so pyiqa need not download that.
        timm.create_model = lambda name, **given: create(name, **{**given, "pretrained": False})
        try:
            yield
        finally:
            timm.create_model, download_util.DEFAULT_CACHE_DIR = create, cache
            torch.hub.set_dir(hub)


def _score(
    metric: str,
    images: tuple[np.ndarray, ...],
    weights: str | None = None,
    download: bool = False,
    device: str = "cpu",
    **_: Any,
) -> float:
    net = network(metric, weights, download, device)
    with torch.no_grad():
        return float(net(*as_tensors(*images, device=device)))


@METRIC_REGISTRY.register()
def calculate_quantface_lpips(img: np.ndarray, img2: np.ndarray, **options: Any) -> float:
    """Return LPIPS v0.1 on AlexNet (Zhang et al., 2018), a distance: lower is better.

    Args:
        img, img2: BGR (H, W, 3), 0…255.
        options: ``weights`` and ``download``, see ``networks.find_files``, and ``device``, a torch
            device (the CPU by default). Other options are ignored.

    Raises:
        QuantFaceError: see ``networks.network``; also if the images differ in size.
    """
    return _score("lpips", (img, img2), **options)


@METRIC_REGISTRY.register()
def calculate_quantface_dists(img: np.ndarray, img2: np.ndarray, **options: Any) -> float:
    """Return DISTS (Ding et al., 2020), a distance: lower is better.

    Arguments and errors are those of LPIPS.
    """
    return _score("dists", (img, img2), **options)


@METRIC_REGISTRY.register()
def calculate_quantface_musiq(img: np.ndarray, **options: Any) -> float:
    """Return MUSIQ trained on KonIQ-10k (Ke et al., 2021): about 0 to 100, higher is better.

    Arguments and errors: as LPIPS, without ``img2``.
    """
    return _score("musiq", (img,), **options)


@METRIC_REGISTRY.register()
def calculate_quantface_maniqa(img: np.ndarray, **options: Any) -> float:
    """Return MANIQA trained on KonIQ-10k (Yang et al., 2022): about 0 to 1, higher is better.

    Arguments and errors: as LPIPS, without ``img2``.
    """
    return _score("maniqa", (img,), **options)


@METRIC_REGISTRY.register()
def calculate_quantface_clipiqa(img: np.ndarray, **options: Any) -> float:
    """Return CLIP-IQA with ResNet-50 (Wang et al., 2023): 0 to 1, higher is better.

    Arguments and errors: as LPIPS, without ``img2``.
    """
    return _score("clipiqa", (img,), **options)


@METRIC_REGISTRY.register()
def calculate_quantface_fid(
    img: str | Path,
    img2: str | Path,
    weights: str | None = None,
    download: bool = False,
    device: str = "cpu",
    **_: Any,
) -> float:
    """Return clean-FID (Heusel et al., 2017; Parmar et al., 2022) between two folders of images.

    FID does not suit validation during training, which compares image by image.

    Args:
        img, img2: folders, each with at least two images.
        weights, download, device: as in LPIPS.

    Raises:
        QuantFaceError: see ``networks.network``; also if ``img`` or ``img2`` is not a folder.
    """
    if isinstance(img, np.ndarray) or not (Path(img).is_dir() and Path(img2).is_dir()):
        raise QuantFaceError("FID compares two folders of images: see scripts/evaluate.py")
    net = network("fid", weights, download, device)
    with contextlib.redirect_stdout(sys.stderr):
        return float(net(str(img), str(img2), num_workers=0))
