"""Find the weights of the background network: a local file, or a published one by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.disk_cache import cache_root
from quantface_arch.utils.download import Published, download

__all__ = ["PUBLISHED", "check_name", "find_background"]

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_SUFFIXES = (".pth", ".safetensors")


PUBLISHED = {
    "realesrgan_x2": Published(
        f"{_RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
    "realesrgan_x4": Published(
        f"{_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
}


def check_name(name_or_path: str, option: str) -> None:
    """Check, without opening the file, that this can be a background network.

    Args:
        name_or_path: see ``find_background``.
        option: the option that names it.

    Raises:
        QuantFaceError: ``name_or_path`` is neither a published name nor a .pth or .safetensors
            file.
    """
    path = Path(name_or_path)
    if path.is_file() and path.suffix in _SUFFIXES:
        return
    if path.exists() or name_or_path not in PUBLISHED:
        raise QuantFaceError(
            f"{option} {name_or_path}: {'not a' if path.exists() else 'no such'} file of "
            f"weights ({' or '.join(_SUFFIXES)}), and not one of {', '.join(PUBLISHED)}"
        )


def find_background(
    name_or_path: str, offline: bool, notify: Callable[[str], None], option: str
) -> Path:
    """Return the path of the weights; a published file is downloaded into the cache once.

    Args:
        name_or_path: a published name or the path of a file.
        offline: never download.
        notify: receives one line about a download.
        option: the option that names the network.

    Raises:
        QuantFaceError: see ``check_name``; or the cached file has another digest.
        Unavailable: the file is not cached, and the download failed or is forbidden.
    """
    check_name(name_or_path, option)
    if Path(name_or_path).exists():
        return Path(name_or_path)
    file = PUBLISHED[name_or_path]
    target = cache_root() / "weights" / file.name
    if target.is_file():
        file.check(target)
        return target
    download(
        f"{name_or_path}: {file.name}",
        file.url,
        target,
        f"name the file with {option}",
        offline=offline,
        notify=notify,
        check=file.check,
    )
    return target
