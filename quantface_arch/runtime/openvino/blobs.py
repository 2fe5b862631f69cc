"""Compiled parts on disk, for later processes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import openvino

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.disk_cache import cached, is_temporary, keep_latest, latest
from quantface_arch.utils.files import file_digest

__all__ = ["Blobs", "Shapes", "core"]

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

# Blobs are kept for this many shapes, if the weights are no larger than this. They are about twice
# as large as the weights, and compiling small parts takes longer than running them.
KEPT_SHAPES, KEPT_BYTES = 8, 64 << 20
BLOB = "compiled.blob"


class Blobs:
    """What OpenVINO compiled of a part, a file for each combination of input shapes.

    Args:
        path: the part's ``.xml`` file.
        options: the options with which it is compiled.
        keep: whether later processes can use what is compiled.
    """

    def __init__(self, path: Path, options: dict[str, Any], keep: bool = True) -> None:
        self.path, self.options, self.keep = path, options, keep

    @property
    def wanted(self) -> bool:
        """Whether blobs are kept; large parts are compiled by every process."""
        return self.keep and self.path.with_suffix(".bin").stat().st_size <= KEPT_BYTES

    def load(
        self, shapes: Shapes, compile_part: Callable[[], openvino.CompiledModel]
    ) -> openvino.CompiledModel:
        """Load what an earlier process compiled, or compile and keep it."""
        fresh: list[openvino.CompiledModel] = []

        def make(folder: Path) -> dict[str, Any]:
            fresh.append(compile_part())
            blob = io.BytesIO()
            fresh[0].export_model(blob)
            (folder / BLOB).write_bytes(blob.getbuffer())
            return {"shapes": shapes, "key": self._key}

        try:
            folder, _ = cached(self._kind, [*self._key, shapes], make)
        except (QuantFaceError, OSError):
            # The disk is full: this process goes on with what it has compiled.
            return fresh[0] if fresh else compile_part()
        if fresh:
            if is_temporary(folder):
                # Nobody reads it.
                shutil.rmtree(folder, ignore_errors=True)
            else:
                keep_latest(folder, KEPT_SHAPES)
            return fresh[0]
        try:
            folder.touch()
            return self._imported(folder)
        except (OSError, RuntimeError):
            # Another process has removed the file, or this build of OpenVINO cannot read it.
            return compile_part()

    def latest(self) -> tuple[Shapes, openvino.CompiledModel] | None:
        """Return the shapes that were used last and their compiled model, if there are any."""
        found = latest(self._kind)
        if found is None or found[1].get("key") != self._key:
            return None
        try:
            return tuple(map(tuple, found[1]["shapes"])), self._imported(found[0])
        except (OSError, RuntimeError):
            return None

    def _imported(self, folder: Path) -> openvino.CompiledModel:
        return core().import_model((folder / BLOB).read_bytes(), "CPU", self.options)

    @cached_property
    def _kind(self) -> str:
        """Where the cache keeps the blobs: named by the digests of the graph and its weights."""
        files = self.path, self.path.with_suffix(".bin")
        return f"compiled/{''.join(file_digest(file)[:16] for file in files)}"

    @cached_property
    def _key(self) -> list[Any]:
        """All that a blob depends on, besides the part and the shapes, as plain data."""
        processor = core().get_property("CPU", "FULL_DEVICE_NAME")
        return json.loads(json.dumps([openvino.get_version(), processor, self.options]))


@cache
def core() -> openvino.Core:
    """Return the one core of this process."""
    return openvino.Core()
