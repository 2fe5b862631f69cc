"""Pairs of a restored image and the clean image that it is compared with, from two folders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.images import FORMAT_NAMES, find_images, load_rgb

__all__ = ["Pair", "find_pairs"]


@dataclass(frozen=True)
class Pair:
    """A restored image and, if it is to be compared, the clean one."""

    restored: Path
    clean: Path | None = None

    @property
    def name(self) -> str:
        return self.restored.name

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of both files' bytes."""
        files = [path for path in (self.restored, self.clean) if path is not None]
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return both images as metrics take them: BGR (H, W, 3) uint8, upright.

        Raises:
            QuantFaceError: a file is not readable, or the sizes differ. The message names the file.
        """
        restored = _read_bgr(self.restored)
        if self.clean is None:
            return restored, None
        clean = _read_bgr(self.clean)
        if restored.shape != clean.shape:
            sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (restored, clean)]
            raise QuantFaceError(
                f"{self.restored}: {sizes[0]} pixels, but {self.clean} has {sizes[1]}"
            )
        return restored, clean


def _read_bgr(path: Path) -> np.ndarray:
    return np.ascontiguousarray(load_rgb(path)[..., ::-1])


def find_pairs(restored: Path, clean: Path | None) -> tuple[list[Pair], list[str]]:
    """Return the images of a folder, sorted, each with the image of the same stem in another one.

    Hidden files, files without an image's suffix, and subfolders are left out.

    Returns:
        the pairs, and for every image without a counterpart a message that names it.

    Raises:
        UsageError: a folder does not exist, has no images or two with the same stem, or there is
            no pair at all.
    """
    if clean is None:
        return [Pair(path) for path in _images(restored)], []
    by_stem, wanted = (_by_stem(folder) for folder in (restored, clean))
    pairs = [Pair(path, wanted[stem]) for stem, path in by_stem.items() if stem in wanted]
    if not pairs:
        raise UsageError(f"{restored} and {clean} have no images of the same names")
    missing = [
        f"{path}: no image of that name in {other}"
        for folder, other, found in ((by_stem, clean, wanted), (wanted, restored, by_stem))
        for stem, path in folder.items()
        if stem not in found
    ]
    return pairs, missing


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of images")
    images = find_images(folder, recursive=False)
    if not images:
        raise UsageError(f"{folder}: no image in this folder ({FORMAT_NAMES})")
    return images


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _images(folder):
        if path.stem in found:
            raise UsageError(f"{path} and {found[path.stem].name}: which one is to be compared?")
        found[path.stem] = path
    return found
