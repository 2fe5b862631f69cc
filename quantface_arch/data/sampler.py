"""A sampler that can resume within an epoch and gives each sample its place in the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.data.data_sampler import EnlargedSampler

__all__ = ["ResumableSampler", "SampleIndex"]


class SampleIndex(int):
    """A dataset index with the training iteration and the position in the whole run.

    Any dataset can use it as a plain integer. ``QuantFaceDataset`` derives a sample's randomness
    from ``position``, the number of samples drawn before it in all epochs, and its size from
    ``iteration``.
    """

    iteration: int
    position: int

    def __new__(cls, value: int, iteration: int = 0, position: int = 0) -> SampleIndex:
        index = super().__new__(cls, value)
        index.iteration = iteration
        index.position = position
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleIndex, (int(self), self.iteration, self.position)


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler in the same order, with ``SampleIndex`` items and a starting point.

    ``batch_size`` is that of one process. ``resume_at`` is an epoch and the number of its batches
    that were trained on already, which are skipped in that epoch.
    """

    batch_size: int = 1
    resume_at: tuple[int, int] = (0, 0)

    def batches_per_epoch(self) -> int:
        """Return the number of batches that a loader with ``drop_last`` makes in one epoch."""
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[SampleIndex]:
        epoch, batches = self.resume_at
        first = batches * self.batch_size if epoch == self.epoch else 0
        base = self.epoch * self.batches_per_epoch()
        for place, value in enumerate(super().__iter__()):
            if place < first:
                continue
            iteration = base + place // self.batch_size + 1
            position = self.epoch * self.total_size + place * self.num_replicas + self.rank
            yield SampleIndex(value, iteration, position)
