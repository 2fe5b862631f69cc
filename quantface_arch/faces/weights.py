"""Find the weights of detectors and of the face embedding: in a folder, a cache, or published."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.disk_cache import cache_root
from quantface_arch.utils.download import Published, Unavailable, download

__all__ = ["EMBEDDER", "FILES", "check_weights_dir", "find_embedder", "find_weights"]

_RELEASE = "https://github.com/xinntao/facexlib/releases/download/v0.1.0"


FILES = {
    "retinaface_mobile0.25": Published(
        f"{_RELEASE}/detection_mobilenet0.25_Final.pth", megabytes=1.7
    ),
    "retinaface_resnet50": Published(f"{_RELEASE}/detection_Resnet50_Final.pth", megabytes=109),
}
# MobileFaceNet, whose embeddings tell faces apart.
EMBEDDER = Published(
    "https://github.com/foamliu/MobileFaceNet/raw/"
    "22d3e78287c70e23cf2f5b6a6a92594008831a7f/weights/MobileFaceNet.onnx",
    "b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507",
    megabytes=4,
)


def _facexlib_cache() -> Path:
    spec = importlib.util.find_spec("facexlib")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("facexlib is not installed (pip install facexlib)")
    return Path(spec.submodule_search_locations[0]) / "weights"


def check_weights_dir(weights_dir: str | os.PathLike[str] | None) -> None:
    """Raise UsageError if the path exists but is not a folder; a download makes a missing one."""
    if weights_dir is not None and Path(weights_dir).exists() and not Path(weights_dir).is_dir():
        raise UsageError(f"--weights-dir {weights_dir} is not a folder")


def find_weights(
    network: str,
    weights_dir: str | os.PathLike[str] | None,
    offline: bool,
    notify: Callable[[str], None],
) -> Path:
    """Return the file of a detector's weights, from a folder, facexlib's cache or a download.

    ``weights_dir`` is searched before facexlib's cache. A download goes to ``weights_dir`` if it is
    given, else to the cache.

    Raises:
        UsageError: ``weights_dir`` is not a folder.
        Unavailable: the file is not there, and the download is forbidden or fails. The message says
            where to put the file.
    """
    file = FILES[network]
    check_weights_dir(weights_dir)
    folders = [] if weights_dir is None else [Path(weights_dir)]
    folders.append(_facexlib_cache())
    for folder in folders:
        if (folder / file.name).is_file():
            return folder / file.name
    target = folders[0] / file.name
    download(
        f"{network}: {file.name} ({file.megabytes} MB)",
        file.url,
        target,
        "name its folder with --weights-dir",
        offline=offline,
        notify=notify,
    )
    return target


def find_embedder(
    weights: str | os.PathLike[str] | None, offline: bool, notify: Callable[[str], None]
) -> Path:
    """Return the file of MobileFaceNet, which is downloaded once if no path is given.

    Args:
        weights: the file, or a folder that holds it under its published name. None takes facexlib's
            folder, as the identity loss does, or this package's cache where facexlib is missing.
        offline: never download.
        notify: receives one line about a download.

    Raises:
        QuantFaceError: there is no such file.
        Unavailable: the file is not there, and the download is forbidden or fails.
    """
    if weights is not None:
        path = Path(weights) / EMBEDDER.name if Path(weights).is_dir() else Path(weights)
        if not path.is_file():
            raise QuantFaceError(f"--identity-weights: no file {path}: get {EMBEDDER.url}")
        return path
    has_facexlib = importlib.util.find_spec("facexlib") is not None
    target = (_facexlib_cache() if has_facexlib else cache_root() / "weights") / EMBEDDER.name
    if not target.is_file():
        download(
            f"--identity: {EMBEDDER.name} ({EMBEDDER.megabytes} MB)",
            EMBEDDER.url,
            target,
            "name it with --identity-weights",
            offline=offline,
            notify=notify,
            check=EMBEDDER.check,
        )
    return target
