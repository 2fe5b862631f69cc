"""Graphs of shipped checkpoints, so that a restoration with them needs no torch.

A file holds the graphs of one checkpoint for one of the two kinds of processors, as
``trace_checkpoint`` writes them. ``scripts/make_graphs.py`` makes the files.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from quantface_arch.utils.files import atomic_path

__all__ = ["graphs_file", "pack", "unpack"]

FOLDER = Path(__file__).resolve().parents[2] / "weights/graphs"
INFO = "graphs.json"


def graphs_file(checkpoint: Path, largest: int) -> Path:
    """Return where the graphs of a shipped checkpoint are, if they are shipped."""
    return FOLDER / f"{checkpoint.stem}-{largest}.zip"


def pack(folder: Path, target: Path, identity: dict[str, Any], kept: dict[str, Any]) -> None:
    """Write a file of graphs.

    Args:
        folder: the graphs.
        identity: plain data that ``unpack`` must be given.
        kept: what ``trace_checkpoint`` returned.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    contents[INFO] = json.dumps({"identity": identity, "kept": kept}).encode()
    packing = zipfile.ZIP_DEFLATED
    with (
        atomic_path(target) as temporary,
        zipfile.ZipFile(temporary, "w", packing, compresslevel=9) as archive,
    ):
        for name, data in contents.items():
            archive.writestr(name, data)


def unpack(path: Path, identity: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Extract the graphs in a file; return what is kept with them.

    None if there is no such file, it is of another checkpoint or version, or it is damaged.

    Raises:
        OSError: the graphs cannot be written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = json.loads(archive.read(INFO))
            if info["identity"] != identity:
                return None
            names = [name for name in archive.namelist() if name != INFO]
            contents = {Path(name).name: archive.read(name) for name in names}
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return info["kept"]
