"""Datasets, registered in BasicSR's DATASET_REGISTRY."""

from __future__ import annotations

from quantface_arch.data.degradation import Degradation, seeded
from quantface_arch.data.face_dataset import QuantFaceDataset
from quantface_arch.data.paired_dataset import QuantFacePairedDataset
from quantface_arch.data.sampler import ResumableSampler, SampleIndex

__all__ = [
    "Degradation",
    "QuantFaceDataset",
    "QuantFacePairedDataset",
    "ResumableSampler",
    "SampleIndex",
    "seeded",
]
