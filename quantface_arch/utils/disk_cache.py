"""What was compiled before: folders named by content, used only if they hold what was written.

The cache lies in the folder that ``QUANTFACE_CACHE`` names, else in ``~/.cache/quantface``. Any of
it may be removed at any time. Processes that want the same folder at once wait for the first one to
make it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import file_digest

__all__ = ["cache_root", "cached"]

MANIFEST = "manifest.json"
# Folders for this process alone, removed with it.
_temporary: list[tempfile.TemporaryDirectory[str]] = []


def cache_root() -> Path:
    """The folder of everything that is cached."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("QUANTFACE_CACHE") or Path(base) / "quantface")


def cached(
    kind: str, key: Any, make: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """A folder of files that depend on ``key`` alone, made where it is missing or damaged.

    Args:
        kind: subfolder of the cache.
        key: plain data; its hash names the folder.
        make: writes files into an empty folder; returns plain data to keep with them.

    Returns:
        the folder and what ``make`` returned. Where the cache cannot be written the folder is a
        temporary one, and a warning says so.

    Raises:
        QuantFaceError: the files cannot be written.
    """
    text = json.dumps(key, sort_keys=True)
    target = cache_root() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]
    kept = _read(target)
    if kept is not None:
        return target, kept
    with _locked(target):
        # Again, since another process may have made it meanwhile.
        kept = _read(target)
        return (target, kept) if kept is not None else _made(target, make)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time; the system ends the lock of a process that is killed."""
    path = cache_root() / "locks" / f"{target.name}.lock"
    lock = FileLock(path)
    # Where nothing can be written, or nothing locked, each process makes its own.
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(target: Path, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """What ``cached`` returns, made anew."""
    scratch = _scratch(target)
    try:
        kept = make(scratch)
        files = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
        (scratch / MANIFEST).write_text(json.dumps({"files": files, "kept": kept}))
        if scratch.parent == target.parent:
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
            return target, kept
        return scratch, kept
    except OSError as error:
        raise QuantFaceError(f"cannot write {scratch}: {error.strerror or error}") from error
    finally:
        if scratch.parent == target.parent:
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch(target: Path) -> Path:
    """An empty folder beside ``target``, or, where none can be made, one for this process."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    except OSError as error:
        warnings.warn(
            f"cache {target.parent}: {error.strerror or error}; what is compiled is not kept, "
            "QUANTFACE_CACHE names another folder",
            stacklevel=5,
        )
        _temporary.append(tempfile.TemporaryDirectory(prefix="quantface-"))
        return Path(_temporary[-1].name)


def _read(folder: Path) -> dict[str, Any] | None:
    """What was kept with a folder's files; None if they are not what was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, wanted in manifest["files"].items():
            if file_digest(folder / name) != wanted:
                return None
        return manifest["kept"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
