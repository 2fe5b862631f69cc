"""Files that are either whole or absent, what they hold, and what may be no file at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from quantface_arch.errors import QuantFaceError, WriteError

__all__ = [
    "atomic_path",
    "file_digest",
    "kind_of",
    "open_file",
    "read_bytes",
    "remove_temporaries",
]

_PREFIX = ".tmp-"
_PIECE = 1 << 24
# What a disk or a folder answers when it takes no more files; a bad name is a matter of one file.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR),
}
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


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file, open for reading; a pipe or a device is refused, never waited for.

    Raises:
        QuantFaceError: missing, no regular file, or not readable, in the block as well.
    """
    try:
        # A pipe that nobody writes to would block the opening as well.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = kind_of(os.fstat(handle).st_mode)
            if kind is not None:
                raise QuantFaceError(f"{path}: cannot be read: it is {kind}, expected a file")
            with open(handle, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(handle)
    except OSError as error:
        raise QuantFaceError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file.

    Args:
        limit: bytes that it may have.

    Raises:
        QuantFaceError: see ``open_file``, or larger than ``limit``.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Files such as those of /proc have more bytes than they say.
        data = b"" if size > limit else file.read(limit + 1)
    size = max(size, len(data))
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
        WriteError: the disk refuses it, in the block as well, whatever library writes there.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=target.suffix, dir=target.parent)
    except OSError as error:
        kind = WriteError if error.errno in _REFUSALS else QuantFaceError
        raise kind(f"cannot write {target}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a result is as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except Exception as error:
        code = _refusal(error)
        if code is None:
            raise
        raise WriteError(f"cannot write {target}: {os.strerror(code)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refusal(error: BaseException | None) -> int | None:
    """The system's error number, if that is why; libraries in Rust and C++ wrap it."""
    if error is None or isinstance(error, WriteError):
        return None
    wrapped = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(wrapped[1]) if wrapped else None
    return code if code in _REFUSALS else _refusal(error.__context__)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder; no other may be writing there."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        QuantFaceError: see ``open_file``.
    """
    found = hashlib.sha256()
    with open_file(path) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()
