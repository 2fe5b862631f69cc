"""A part of a network whose graph holds for one size, traced for each size that it receives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from quantface_arch.runtime.openvino.compiled import SHAPES, CompiledPart
from quantface_arch.utils.disk_cache import cached, keep_latest
from quantface_arch.utils.lru import LRUCache

__all__ = ["OneSizePart"]

# Graphs are kept on disk for this many sizes.
KEPT_SIZES = 8
Trace: TypeAlias = Callable[[tuple[np.ndarray, ...], Path], None]


class OneSizePart:
    """A callable that replaces a method of a network, as ``CompiledPart`` does.

    Window attention and position tables, for example, turn the sides of an image into constants of
    the traced graph. The graphs of some sizes are kept on disk for later processes.

    Args:
        name: the method's name.
        digest: identifies all that a graph depends on besides the shapes.
        trace: writes ``NAME.xml`` and its weights for given inputs into a folder.
        exact: see ``CompiledPart``.
    """

    def __init__(self, name: str, digest: str, trace: Trace, exact: bool) -> None:
        self.name, self.digest, self.trace, self.exact = name, digest, trace, exact
        self._lock = threading.Lock()
        self.parts: LRUCache[CompiledPart] = LRUCache(SHAPES)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run on arrays; the results are float32. Threads may call it.

        Raises:
            QuantFaceError: the part cannot be traced, compiled or computed for these shapes.
        """
        shapes = tuple(x.shape for x in inputs)
        with self._lock:
            part = self.parts.get_or_make(shapes, lambda: self._traced(inputs, shapes))
        return part(*inputs)

    def _traced(self, inputs: tuple[np.ndarray, ...], shapes: Any) -> CompiledPart:
        def make(scratch: Path) -> dict[str, Any]:
            self.trace(inputs, scratch)
            return {}

        folder, _ = cached(f"one_size/{self.digest}", shapes, make)
        keep_latest(folder, KEPT_SIZES)
        return CompiledPart(folder / f"{self.name}.xml", self.exact, keep=False)
