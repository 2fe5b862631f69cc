"""Processes that share work, played by threads: what they exchange is copied as it would be."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from quantface_arch.utils.distributed import Shard


@dataclass(frozen=True)
class ThreadShard(Shard):
    board: tuple = ()
    barrier: threading.Barrier | None = None

    def gather(self, value):
        self.board[0][self.rank] = pickle.dumps(value)
        self.barrier.wait(600)
        values = [pickle.loads(item) for item in self.board[0]]
        self.barrier.wait(600)
        return values

    def agree(self, value):
        return self.gather(value)[0]


def together(count, work):
    """Return what ``work(shard)`` returns in each of ``count`` processes, by rank."""
    board, barrier = ([None] * count,), threading.Barrier(count)

    def run(rank):
        try:
            return work(ThreadShard(rank, count, rank, count, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(run, rank) for rank in range(count)]
    errors = [found for future in running if (found := future.exception())]
    # First whatever made the others wait in vain.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in running]
