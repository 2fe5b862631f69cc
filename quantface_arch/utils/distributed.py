"""Work shared out among the processes that torchrun started; without it one process does it all."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from quantface_arch.errors import QuantFaceError

__all__ = ["Shard"]

T = TypeVar("T")
# Processes with more work, or slower machines, are waited for so long.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Shard:
    """One process among several.

    Attributes:
        rank, count: which of how many.
        local_rank, local_count: the same among those of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def here(cls) -> Shard:
        """This process, as torchrun's environment variables say; alone where there are none."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        alone = ("0", "1", "0", "1")
        pairs = zip(names, alone, strict=True)
        return cls(*(int(os.environ.get(name, default)) for name, default in pairs))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def threads(self) -> int:
        """Of this process: an equal share of the machine's cores, at least 1."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_count)

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: every ``count``-th, so that shares differ by one item at most."""
        return list(items[self.rank :: self.count])

    def whole(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The items in their order again, from every process's ``share``, which ``gather`` gave."""
        whole: list[T] = [shares[0][0]] * sum(map(len, shares)) if any(shares) else []
        for rank, share in enumerate(shares):
            whole[rank :: self.count] = share
        return whole

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the other processes, take a share of the cores, and leave together.

        Raises:
            QuantFaceError: the others cannot be reached.
        """
        if self.count == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        _end_with_parent()
        torch.set_num_threads(self.threads)
        with self._together():
            dist.init_process_group("gloo", timeout=PATIENCE)
        yield
        # torchrun ends all processes when one fails: nobody leaves before all are done.
        self.gather(None)
        dist.destroy_process_group()

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; all have to call it, inside ``joined``.

        Raises:
            QuantFaceError: another process has ended.
        """
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with self._together():
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """The first process's value; all have to call it, inside ``joined``.

        Raises:
            QuantFaceError: another process has ended.
        """
        if self.count == 1:
            return value
        import torch.distributed as dist

        values = [value]
        with self._together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise QuantFaceError(
                f"process {self.rank} of {self.count}: lost another process ({reason})"
            ) from error


def _end_with_parent() -> None:
    """Have this process ended when torchrun is killed, which cannot do so then."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
