"""Share work among the processes that torchrun started; without it, one process does all."""

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
from quantface_arch.utils.threads import processors, set_thread_count

__all__ = ["Shard"]

T = TypeVar("T")
# A process waits this long for others that have more work or slower machines.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Shard:
    """One process among several.

    Attributes:
        rank, count: the number of this process and the number of all processes.
        local_rank, local_count: the same among the processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def here(cls) -> Shard:
        """Return this process's shard from torchrun's environment variables, or the only shard."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        alone = ("0", "1", "0", "1")
        pairs = zip(names, alone, strict=True)
        return cls(*(int(os.environ.get(name, default)) for name, default in pairs))

    @property
    def is_first(self) -> bool:
        """Whether this process prints and decides for all processes."""
        return self.rank == 0

    @property
    def threads(self) -> int:
        """The threads of this process: an equal share of the machine's cores, at least 1."""
        return max(1, len(processors()) // self.local_count)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's share, every ``count``-th item; shares differ by at most one."""
        return list(items[self.rank :: self.count])

    def whole(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """Return all items in their order, given the shares of all processes (see ``gather``)."""
        whole: list[T] = [shares[0][0]] * sum(map(len, shares)) if any(shares) else []
        for rank, share in enumerate(shares):
            whole[rank :: self.count] = share
        return whole

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the other processes with a share of the cores, and leave together with them.

        Raises:
            QuantFaceError: the other processes cannot be reached.
        """
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        _end_with_parent()
        set_thread_count(self.threads)
        with self._together():
            dist.init_process_group("gloo", timeout=PATIENCE)
        yield
        # torchrun ends all processes when one fails, so none may leave before all are done.
        self.gather(None)
        dist.destroy_process_group()

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank; every process must call it, inside ``joined``.

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
        """Return the first process's value; every process must call it, inside ``joined``.

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
    """End this process when torchrun is killed, since torchrun cannot end it then."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
