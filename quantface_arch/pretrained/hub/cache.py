"""The restorers that were fetched, and those that were made of them."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.lock import Lock
from quantface_arch.pretrained.hub.origin import origin_file
from quantface_arch.pretrained.hub.sources import Part, Source, hub_folder, source_of
from quantface_arch.utils.disk_cache import cache_root

__all__ = ["BIT_WIDTHS", "cached", "entries", "held", "is_complete", "remove", "require"]

# Parts of the names of the statistics of an unfinished quantization, and of bit widths by layer.
CALIBRATION, BIT_WIDTHS = ".calib", ".bits"


def is_complete(part: Part, lock: Lock) -> bool:
    """Return whether all files of a part were fetched, or a folder stands in their place."""
    if part.folder != "." and (lock.folder / part.folder).is_symlink():
        return (lock.folder / part.folder).is_dir()
    return all(any(lock.holds(part.kept(name)) for name in names) for names in part.files)


def cached(name: str) -> Path | None:
    """Return the restorer of a name if the cache has it: a folder as published, or a checkpoint."""
    found = source_of(name)
    if found is None:
        return next(iter(sorted(hub_folder(name).glob("*.safetensors"))), None)
    source, recipe = found
    if recipe is None:
        return source.folder if _is_fetched(source) else None
    path = source.quantized(recipe)
    return path if path.is_file() else None


def _is_fetched(source: Source) -> bool:
    lock = Lock(source.folder)
    return all(is_complete(part, lock) for part in source.parts)


def require(name: str) -> Path:
    """Return the cached restorer of a name.

    Raises:
        QuantFaceError: it is not in the cache.
    """
    path = cached(name)
    if path is None:
        raise QuantFaceError(
            f"model {name!r}: no such file or folder, and not fetched yet: quantface fetch "
            f"{name} fetches it"
        )
    return path


def entries() -> Iterator[tuple[Path, int]]:
    """Yield what the cache has, and its size in bytes. Lock files are not listed."""
    root = cache_root() / "models"
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.name.startswith(".") or CALIBRATION in path.name:
            continue
        if path.is_dir():
            yield path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        elif path.suffix == ".safetensors":
            yield path, path.stat().st_size


def remove(name: str) -> list[Path]:
    """Remove a restorer from the cache; return what was removed.

    Its lock file stays, so that the next fetch must give the same files.

    Raises:
        QuantFaceError: the cache has nothing of this name.
    """
    folder = hub_folder(name.removesuffix(".safetensors"))
    root, entry, start = folder.parent, folder.name, glob.escape(folder.name)
    found = [path for path, _ in entries() if path.name in {entry, f"{entry}.safetensors"}]
    begun = [file for kind in (CALIBRATION, BIT_WIDTHS) for file in root.glob(f"{start}{kind}*")]
    if not found and not begun:
        have = ", ".join(path.name for path, _ in entries()) or "nothing"
        raise QuantFaceError(f"{name!r} is not in {root}, which has {have}")
    for path in found:
        if path.is_dir():
            # Bit widths hold for the files that they were measured on.
            begun += root.glob(f"{start}-*{BIT_WIDTHS}*")
            with held(path):
                shutil.rmtree(path)
        else:
            path.unlink()
    for path in (*begun, origin_file(entry)):
        if not path.is_dir():
            path.unlink(missing_ok=True)
    return found or begun


@contextmanager
def held(path: Path, wait: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Keep other processes from changing an entry of the cache.

    Args:
        path: the entry.
        wait: receives a line if another process has to end first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.busy"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        wait(f"another process is at work on {path}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
