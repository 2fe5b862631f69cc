"""Pairs of degraded and clean faces for validation, from two folders or made on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from quantface_arch.data.default_faces import DEFAULT_PAIRS, find_faces
from quantface_arch.data.face_dataset import LOOP_OPTIONS, QuantFaceDataset
from quantface_arch.errors import QuantFaceError

__all__ = ["QuantFacePairedDataset"]

SHIPPED_SIZE = 512


@DATASET_REGISTRY.register()
class QuantFacePairedDataset(Dataset):
    """BasicSR's ``PairedImageDataset``, made to work on a fresh checkout too.

    If the folders are ``datasets/faces_val/gt`` and ``datasets/faces_val/lq``, and there is no
    ``datasets/faces_val``, the faces that ship with the package are degraded on the fly, at 512×512
    and in the same way in every run.

    Options:
        dataroot_gt (str): folder of clean images.
        dataroot_lq (str): folder of degraded images with the same names.

    All other options are those of ``PairedImageDataset``.

    Raises:
        QuantFaceError: one of the folders is not named.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        given = [opt.get(name) for name in ("dataroot_gt", "dataroot_lq")]
        if not all(isinstance(folder, str) for folder in given):
            raise QuantFaceError(
                f"{type(self).__name__}: found dataroot_gt {given[0]!r} and dataroot_lq "
                f"{given[1]!r}, expected two folders"
            )
        folders = [Path(str(folder)) for folder in given]
        default = folders == [DEFAULT_PAIRS / "gt", DEFAULT_PAIRS / "lq"]
        if default and not DEFAULT_PAIRS.exists():
            loop = {name: value for name, value in opt.items() if name in LOOP_OPTIONS}
            root = str(find_faces(folders[0]))
            fixed = {"dataroot_gt": root, "gt_size": SHIPPED_SIZE, "use_hflip": False}
            self.pairs: QuantFaceDataset | PairedImageDataset = QuantFaceDataset({**loop, **fixed})
        else:
            self.pairs = PairedImageDataset(dict(opt))

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs)
