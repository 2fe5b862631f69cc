"""Published files, downloaded whole or not at all."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path

__all__ = ["Unavailable", "download"]

_TIMEOUT_SECONDS = 10


class Unavailable(QuantFaceError):
    """A published file is not on this machine and could not, or may not, be downloaded."""


def download(
    what: str,
    url: str,
    target: Path,
    way_out: str,
    *,
    offline: bool,
    notify: Callable[[str], None],
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a published file that is missing to ``target``, whose folder is made.

    Args:
        what: names it in messages.
        way_out: what to do with the file once one has got it by oneself; ends messages.
        offline: do not.
        notify: told before it begins, in one line.
        check: is shown the whole file before it gets its name; raises where it is another.

    Raises:
        Unavailable: offline, no connection, it ended early, cannot be written, or what ``check``
            raises; the message says how to get it.
    """
    missing, way_out = f"{what} is not in {target.parent}", f"get {url} and {way_out}"
    if offline:
        raise Unavailable(f"{missing}, and --offline forbids the download: {way_out}")
    notify(f"downloading {what} from {url} to {target}")
    try:
        _transfer(url, target, check)
    except (OSError, QuantFaceError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unavailable(f"{missing}, and the download failed ({reason}): {way_out}") from error


def _transfer(url: str, target: Path, check: Callable[[Path], None]) -> None:
    with atomic_path(target) as temporary:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source:
            expected = source.headers.get("Content-Length")
            with temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        found = temporary.stat().st_size
        if expected is not None and found != int(expected):
            raise QuantFaceError(f"{url} ended after {found} of {expected} bytes")
        check(temporary)
