"""Files that are either whole or absent, and reading such as may be no files at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantface_arch.errors import QuantFaceError

__all__ = ["atomic_path", "kind_of", "read_bytes"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str | None:
    """What a file's ``st_mode`` says that it is instead of a regular file; None for one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file; a pipe or a device is refused, never waited for.

    Args:
        limit: bytes that it may have.

    Raises:
        QuantFaceError: missing, no regular file, not readable, or larger than ``limit``.
    """
    try:
        # A pipe that nobody writes to would block the opening as well.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            kind = kind_of(found.st_mode)
            if kind is not None:
                raise QuantFaceError(f"{path}: cannot be read: it is {kind}, a file is wanted")
            # Files such as those of /proc have more bytes than they say.
            data = b"" if found.st_size > limit else file.read(limit + 1)
    except OSError as error:
        raise QuantFaceError(f"{path}: cannot be read: {error.strerror or error}") from error
    size = max(found.st_size, len(data))
    if size > limit:
        raise QuantFaceError(f"{path}: found {size:,} bytes, at most {limit:,} are allowed")
    return data


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it onto ``path`` when the block succeeds.

    The suffix is kept, since image writers choose the format by it. On an exception the temporary
    file is removed and ``path`` stays as it was.

    Raises:
        QuantFaceError: the folder cannot be created or written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise QuantFaceError(f"cannot write {target}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a result is as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
