"""Return memory that is no longer needed to the system, where the system supports it."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["forgetting_pages", "return_freed"]

# Two rounds are this many seconds apart. Weights are copied at about 0.2 GB a second.
PAUSE = 0.05
# This advice to madvise drops pages. They are read from the file again when needed.
DONTNEED = 4


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def return_freed() -> None:
    """Return freed memory to the system; the C library keeps gigabytes after tracing."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def forgetting_pages(path: Path) -> Iterator[None]:
    """Drop a mapped file's pages from memory repeatedly inside the block, and at its end.

    A compiler copies the weights that it reads from such a file, so they would be in memory twice.
    The file must already be mapped read-only and stay mapped inside the block.
    """
    ranges = _mapped(path)
    done = threading.Event()

    def forget() -> None:
        for start, size in ranges:
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), DONTNEED)

    def watch() -> None:
        while not done.wait(PAUSE):
            forget()

    watcher = threading.Thread(target=watch, daemon=True)
    if ranges:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if ranges:
            watcher.join()
            forget()


def _mapped(path: Path) -> list[tuple[int, int]]:
    """Return the addresses and sizes at which a file is mapped; an empty list except on Linux."""
    if _libc() is None:
        return []
    found, wanted = [], str(path.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_, name = line.split(maxsplit=5)
        if name == wanted and "w" not in rights:
            start, end = (int(side, 16) for side in span.split("-"))
            found.append((start, end - start))
    return found
