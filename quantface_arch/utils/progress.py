"""Show progress bars that stay readable in a log file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

__all__ = ["LOG_INTERVAL", "progress_bar"]

# In a log, a bar prints a line at most once in this many seconds.
LOG_INTERVAL = 5.0


class _LineWriter(io.TextIOBase):
    """Write each state of a progress bar to stderr as a line of its own, without repetitions.

    tqdm starts every state with a carriage return, and draws the last one again when it closes.
    """

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> int:
        line = text.strip()
        # Time and speed, in brackets, change even if nothing was done since the last line.
        state = line.partition("[")[0]
        if line and state != self._last:
            print(line, file=sys.stderr)
            self._last = state
        return len(text)


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar on stderr; without a terminal it prints a line every few seconds instead.

    Args:
        iterable: items to iterate over; None for a bar that is updated by hand.
        options: other arguments of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, file=sys.stderr, **options)
    return tqdm(iterable, file=_LineWriter(), mininterval=LOG_INTERVAL, **options)
