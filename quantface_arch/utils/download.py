"""Download published files, completely or not at all."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path, file_digest

__all__ = ["Published", "Unavailable", "download"]

_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Published:
    """A file that can be downloaded.

    Attributes:
        url: address of the file.
        sha256: digest that the file must have; None if it is not checked.
        megabytes: size of the file; None if it is not known.
    """

    url: str
    sha256: str | None = None
    megabytes: float | None = None

    @property
    def name(self) -> str:
        """The file name."""
        return self.url.rpartition("/")[2]

    def check(self, path: Path) -> None:
        """Raise QuantFaceError if a file has another digest."""
        found = file_digest(path)
        if self.sha256 is not None and found != self.sha256:
            raise QuantFaceError(f"{path}: SHA-256 is {found}, but {self.name} has {self.sha256}")


class Unavailable(QuantFaceError):
    """A published file that is missing here and could not, or must not, be downloaded."""


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
    """Download a missing file to ``target``, whose folder is created.

    Args:
        what: what messages call the file.
        way_out: what to do with a file that was downloaded by hand, worded to end a message.
        offline: refuse to download.
        notify: receives one line before the download begins.
        check: function that gets the complete file before the file gets its name. It raises an
            exception if the file is the wrong one.

    Raises:
        Unavailable: ``offline`` is set, there is no connection, the download ends early, the file
            cannot be written, or ``check`` raises. The message says how to get the file.
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
