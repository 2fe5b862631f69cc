"""Write files completely or not at all, and read only regular files."""

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
# With these errors a disk or folder refuses every file. A bad name, in contrast, concerns one file.
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
    """Return what a file with this ``st_mode`` is; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe or a device is refused at once.

    Raises:
        QuantFaceError: the file is missing, not regular or not readable, or an ``OSError`` occurs
            in the block.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait.
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
    """Return all bytes of a regular file.

    Args:
        limit: the greatest number of bytes allowed.

    Raises:
        QuantFaceError: see ``open_file``; or the file is larger than ``limit``.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Files such as those in /proc are larger than their stated size, so count what is read.
        data = b"" if size > limit else file.read(limit + 1)
    size = max(size, len(data))
    if size > limit:
        raise QuantFaceError(f"{path}: found {size:,} bytes, at most {limit:,} are allowed")
    return data


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block succeeds.

    The temporary path has the same suffix, because image writers choose the format by it. On an
    exception the temporary file is removed and ``path`` is unchanged.

    Raises:
        QuantFaceError: the folder cannot be created or written.
        WriteError: the disk refuses the file, here or in any library that the block calls.
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
        # mkstemp makes private files, but a result must be as readable as any other new file.
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
    """Return the error number if the disk refused a file, even if a library wraps the error."""
    if error is None or isinstance(error, WriteError):
        return None
    wrapped = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(wrapped[1]) if wrapped else None
    return code if code in _REFUSALS else _refusal(error.__context__)


def remove_temporaries(folder: Path) -> None:
    """Delete half-written files of killed processes; no other process may be writing there."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        QuantFaceError: see ``open_file``.
    """
    found = hashlib.sha256()
    with open_file(path) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()
