"""Weights of the background's network: a file of yours, or a published one by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.download import download
from quantface_arch.utils.files import file_digest

__all__ = ["PUBLISHED", "check_name", "find_background"]

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class Published:
    """A file of weights that anyone can get, and the SHA-256 that it must have."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


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


def check_name(name_or_path: str) -> None:
    """Find out, without opening anything, whether this can be a background's network.

    Raises:
        QuantFaceError: neither a published name nor a .pth or .safetensors file.
    """
    path = Path(name_or_path)
    if path.is_file() and path.suffix in _SUFFIXES:
        return
    if path.exists() or name_or_path not in PUBLISHED:
        raise QuantFaceError(
            f"--bg-upsampler {name_or_path}: {'not a' if path.exists() else 'no such'} file of "
            f"weights ({' or '.join(_SUFFIXES)}), nor one of {', '.join(PUBLISHED)}"
        )


def find_background(name_or_path: str, offline: bool, notify: Callable[[str], None]) -> Path:
    """The file of weights; a published one is downloaded into the cache folder once.

    Raises:
        QuantFaceError: see ``check_name``; the file that is here is another.
        Unavailable: it is not here and could not, or may not, be downloaded.
    """
    check_name(name_or_path)
    if Path(name_or_path).exists():
        return Path(name_or_path)
    # Not at the top: it brings torch, and names are checked before that is wanted.
    from quantface_arch.utils.disk_cache import cache_root

    file = PUBLISHED[name_or_path]
    target = cache_root() / "weights" / file.name
    if target.is_file():
        _check(target, file)
        return target
    download(
        f"{name_or_path}: {file.name}",
        file.url,
        target,
        "name the file with --bg-upsampler",
        offline=offline,
        notify=notify,
        check=partial(_check, file=file),
    )
    return target


def _check(path: Path, file: Published) -> None:
    found = file_digest(path)
    if found != file.sha256:
        raise QuantFaceError(f"{path}: SHA-256 {found}, {file.name} has {file.sha256}")
