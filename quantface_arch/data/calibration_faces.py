"""The degraded faces that a restorer is calibrated on, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from quantface_arch.data.default_faces import DEFAULT_FACES
from quantface_arch.data.face_dataset import QuantFaceDataset
from quantface_arch.errors import UsageError
from quantface_arch.utils.images import FORMAT_NAMES, find_images, load_rgb, resize

__all__ = ["Faces", "list_faces", "open_faces"]


def list_faces(source: Path) -> list[Path]:
    """Return the image given, or all images in and below a folder, sorted.

    Raises:
        UsageError: there is no such path, or the folder has no image.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"{source}: no such file or folder of faces")
    faces = find_images(source)
    if not faces:
        raise UsageError(f"{source}: no image in this folder ({FORMAT_NAMES})")
    return faces


def open_faces(source: Path | None, size: int, count: int, clean: Path = DEFAULT_FACES) -> Faces:
    """Return at most ``count`` faces of a file or folder, or degraded ones.

    Args:
        source: degraded faces; None degrades those of ``clean``, the same way every time.
        size: side of the faces in pixels.
        count: faces to return at most.
        clean: folder of clean faces.
    """
    if source is not None:
        paths = list_faces(source)

        def read(index: int) -> Tensor:
            rgb = torch.tensor(resize(load_rgb(paths[index]), size, size))
            return rgb.permute(2, 0, 1).float() / 255

        return Faces(paths, read, count)
    options = {"gt_size": size, "rescale_prob": 1.0, "use_hflip": False}
    dataset = QuantFaceDataset({"dataroot_gt": str(clean), **options})
    paths = [Path(key) for key in dataset.keys]
    return Faces(paths, lambda index: cast(Tensor, dataset[index]["lq"]), count)


class Faces:
    """Faces, float (3, size, size), each read when it is needed.

    They have the range of a network's input, ``input_range``.

    Args:
        paths: files of all faces.
        read: returns one of them by its place in ``paths``, in [0, 1].
        count: faces to use at most, evenly spread: neighbours by name often come from one source.
    """

    def __init__(self, paths: list[Path], read: Callable[[int], Tensor], count: int) -> None:
        count = min(count, len(paths))
        self.places = [place * len(paths) // count for place in range(count)]
        self.paths = [paths[place] for place in self.places]
        self.read = read
        self.input_range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        low, high = self.input_range
        return self.read(self.places[index]) * (high - low) + low
