"""The options of the face data set in options files, each declared and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantface_arch.data.degradation import Degradation
from quantface_arch.utils.option_fields import Limits, option

__all__ = ["FaceDatasetOptions"]

SHARE = Limits(least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class FaceDatasetOptions:
    """Options of an entry of ``datasets`` with ``type: QuantFaceDataset``."""

    dataroot_gt: str = option(
        "folder of clean square faces, scanned with its subfolders, or a `.lmdb`. If "
        "`datasets/faces` is missing, the faces that ship with the package are used, enlarged "
        "if `gt_size` is larger."
    )
    io_backend: Mapping[str, Any] = option(
        "BasicSR's option, `type: disk` or `type: lmdb`.", {"type": "disk"}, shown="disk"
    )
    gt_size: int | Sequence[Sequence[int]] = option(
        "side S of the samples, or a schedule [[iteration, size], …]; a size holds from its "
        "iteration on. Larger images are cropped at random. A smaller image is replaced by a "
        "random one that is large enough."
    )
    rescale_prob: float = option(
        "share of images shrunk by a random factor, down to S, before cropping.", 0.0, limits=SHARE
    )
    repeat: Mapping[str, int] = option(
        "subfolder name → how many times an epoch goes through its images.", {}, shown="once"
    )
    holdout: Mapping[str, int] = option(
        "subfolder name → n: images are held out for evaluation if the SHA-256 of their name is a "
        "multiple of n.",
        {},
        shown="none",
    )
    whole_every: int = option(
        "at iterations that are multiples of this number, samples are whole faces shrunk to S, not "
        "crops, so that a loss can compare whole faces.",
        0,
        limits=Limits(least=0),
        shown="0: never",
    )
    equalize_skin_tones: bool = option(
        "draw samples so that light, medium and dark skin are equally frequent; faces must be "
        "aligned.",
        False,
    )
    recolor_prob: float = option(
        "share of samples with permuted colour channels and a random saturation, so that colours "
        "that the faces lack are learned too.",
        0.0,
        limits=SHARE,
    )
    degradation: Degradation = option(
        "see `datasets: train: degradation` below.", Degradation(), shown="as there"
    )
    use_hflip: bool = option("mirror half of the samples.", True)
    seed: int = option("seed of the random draws.", 0)
