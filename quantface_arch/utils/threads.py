"""How many threads a process computes with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["processors", "set_thread_count", "thread_count"]

_VARIABLE = "OMP_NUM_THREADS"
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_set: list[int] = []


def processors() -> list[int]:
    """Return the numbers of the processors that this process may use, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def thread_count() -> int:
    """Return the number of threads: what was set, else OMP_NUM_THREADS, else one for each core.

    Two processors that share a core are one, where the system tells (Linux). What torch is set to
    does not count, see ``set_thread_count``.
    """
    if _set:
        return _set[0]
    given = os.environ.get(_VARIABLE, "").partition(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len({_core(number) for number in processors()})


def _core(processor: int) -> str:
    """Return a text that is the same for all processors of a core."""
    try:
        return Path(_SIBLINGS.format(processor)).read_text().strip()
    except OSError:
        # The system does not tell.
        return str(processor)


def set_thread_count(count: int) -> None:
    """Set the number of threads of this process, and of torch if it has been imported."""
    _set[:] = [count]
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
