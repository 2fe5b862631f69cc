"""Published files, downloaded whole or not at all."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.fsutil import atomic_path

__all__ = ["download"]

_TIMEOUT_SECONDS = 10


def download(url: str, target: Path, check: Callable[[Path], None] = lambda path: None) -> None:
    """Write what an address serves to ``target``, whose folder is made.

    Args:
        check: is shown the whole file before it gets its name; raises where it is another.

    Raises:
        OSError: no connection, or it is lost.
        QuantFaceError: it ended early, cannot be written, or what ``check`` raises.
    """
    with atomic_path(target) as temporary:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source:
            expected = source.headers.get("Content-Length")
            with temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        found = temporary.stat().st_size
        if expected is not None and found != int(expected):
            raise QuantFaceError(f"{url} ended after {found} of {expected} bytes")
        check(temporary)
