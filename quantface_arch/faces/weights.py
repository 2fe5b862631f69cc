"""Find the detectors' weights: in a folder, in facexlib's cache, or on its release page."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import UsageError
from quantface_arch.utils.download import Published, Unavailable, download

__all__ = ["FILES", "check_weights_dir", "find_weights"]

_RELEASE = "https://github.com/xinntao/facexlib/releases/download/v0.1.0"


FILES = {
    "retinaface_mobile0.25": Published(
        f"{_RELEASE}/detection_mobilenet0.25_Final.pth", megabytes=1.7
    ),
    "retinaface_resnet50": Published(f"{_RELEASE}/detection_Resnet50_Final.pth", megabytes=109),
}


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
