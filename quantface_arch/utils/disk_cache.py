"""Keep folders of files on disk, named by their key, and use them while they are unchanged.

The cache lies in the folder that ``QUANTFACE_CACHE`` names, or in ``~/.cache/quantface``. Any part
of it may be removed at any time. If several processes need the same folder at once, the first one
makes it and the others wait.
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

__all__ = ["cache_root", "cached", "is_temporary", "keep_latest", "latest", "temporary_cache"]

MANIFEST = "manifest.json"
VARIABLE = "QUANTFACE_CACHE"
# These temporary folders are removed when the process ends.
_temporary: list[tempfile.TemporaryDirectory[str]] = []


def cache_root() -> Path:
    """Return the folder that holds everything that is cached."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(base) / "quantface")


@contextmanager
def temporary_cache() -> Iterator[Path]:
    """Cache in a new folder inside the block, yield it, and remove it at the end."""
    before = os.environ.get(VARIABLE, "")
    with tempfile.TemporaryDirectory(prefix="quantface-") as folder:
        os.environ[VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            os.environ[VARIABLE] = before


def cached(
    kind: str, key: Any, make: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """Return a folder of files that depend only on ``key``; make it if it is missing or damaged.

    Args:
        kind: the subfolder of the cache.
        key: plain data, whose hash names the folder.
        make: writes files into an empty folder, and returns plain data that is kept with them.

    Returns:
        the folder and what ``make`` returned. If the cache cannot be written, the folder is
        temporary and a warning says so.

    Raises:
        QuantFaceError: the files cannot be written.
    """
    text = json.dumps(key, sort_keys=True)
    target = cache_root() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]
    kept = _read(target)
    if kept is not None:
        return target, kept
    with _locked(target):
        # Another process may have made the folder in the meantime.
        kept = _read(target)
        return (target, kept) if kept is not None else _made(target, make)


def keep_latest(used: Path, count: int) -> None:
    """Remove all but the ``count`` folders beside ``used`` that were used last.

    Args:
        used: the folder that ``cached`` returned. It counts as the one used last. If the cache
            cannot be written, it is a temporary one, and nothing is removed.
    """
    if not is_temporary(used):
        # Another process may remove the same folders.
        with suppress(OSError):
            used.touch()
            for path in _by_use(used.parent)[:-count]:
                shutil.rmtree(path, ignore_errors=True)


def is_temporary(folder: Path) -> bool:
    """Return whether ``cached`` made a folder outside of the cache, which it could not write."""
    return any(Path(item.name) == folder for item in _temporary)


def latest(kind: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder of a kind that was made or touched last, and what is kept with it.

    None if there is none, or if it is damaged.
    """
    with suppress(OSError):
        for folder in _by_use(cache_root() / kind)[-1:]:
            kept = _read(folder)
            return None if kept is None else (folder, kept)
    return None


def _by_use(parent: Path) -> list[Path]:
    """Return the folders of a kind, the one used last at the end.

    Raises:
        OSError: another process removes one of them at the same time, or there is none.
    """
    kept = [path for path in parent.iterdir() if not path.name.startswith(".")]
    return sorted(kept, key=lambda path: path.stat().st_mtime)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it if the process is killed."""
    path = cache_root() / "locks" / f"{target.name}.lock"
    lock = FileLock(path)
    # If nothing can be written or locked, each process makes its own folder.
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(target: Path, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Make the folder, and return what ``cached`` returns."""
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
    """Create an empty folder beside ``target``, or a temporary one if that is impossible."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    except OSError as error:
        warnings.warn(
            f"cache {target.parent}: {error.strerror or error}; compiled files are not kept; "
            "set QUANTFACE_CACHE to another folder",
            stacklevel=5,
        )
        _temporary.append(tempfile.TemporaryDirectory(prefix="quantface-"))
        return Path(_temporary[-1].name)


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the data kept with a folder's files; None if a file is missing or has changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, wanted in manifest["files"].items():
            if file_digest(folder / name) != wanted:
                return None
        return manifest["kept"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
