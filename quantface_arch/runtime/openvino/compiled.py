"""A part of a network, compiled for each input shape that it receives."""

from __future__ import annotations

import io
import re
import shutil
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino
import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime.openvino.memory import forgetting_pages, return_freed
from quantface_arch.utils.disk_cache import cache_root, cached, keep_latest
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.lru import LRUCache

__all__ = ["WEIGHT", "CompiledPart", "integer_products"]

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

# This many shapes stay compiled. Each holds a copy of the weights.
SHAPES = 2
# Compiled parts are kept on disk for this many shapes, if their weights are no larger than this.
# They are about twice as large as the weights, and compiling small parts takes longer than running
# them.
KEPT_SHAPES, KEPT_BYTES = 8, 64 << 20
BLOB = "compiled.blob"
# These match the names of a lowered layer's weight and product in the compiled graph.
WEIGHT = re.compile(r"self\.network\.(.+)\.integer\.weight")
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
PRODUCT = re.compile(r"__module\.network\.([^,]+?)\.integer/aten::(?:_convolution|linear)")


class CompiledPart:
    """A callable that replaces a method of a network.

    Args:
        path: the ``.xml`` file.
        exact: compute everything except integer products in float32. Otherwise the precision is the
            fastest that the processor has.
        frugal: hold nothing but the weights in memory between two runs. This costs a few percent of
            the time of a small network.
        keep: keep what is compiled on disk, for later processes.
    """

    def __init__(self, path: Path, exact: bool, frugal: bool = False, keep: bool = True) -> None:
        self.path, self.frugal, self.keep = path, frugal, keep
        self.options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # With pinning, every process would bind its threads to the first cores, and several
            # processes would share them.
            "ENABLE_CPU_PINNING": False,
        }
        if exact:
            self.options["INFERENCE_PRECISION_HINT"] = "f32"
        # A compiled model has one request, whose results the next call overwrites. More requests
        # would need more memory and, on the same threads, be no faster.
        self._lock = threading.Lock()
        self.compiled: LRUCache[openvino.CompiledModel] = LRUCache(SHAPES)

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run on CPU tensors; the results are float32. Threads may call it, and take turns.

        Raises:
            QuantFaceError: the shapes cannot be compiled or computed, for example for lack of
                memory.
        """
        shapes = tuple(tuple(x.shape) for x in inputs)
        arrays = [x.detach().float().contiguous().numpy() for x in inputs]
        try:
            with self._lock:
                tensors = self._run(shapes, arrays)
        except (RuntimeError, MemoryError) as error:
            raise QuantFaceError(self._failure_message(shapes, error)) from error
        return tuple(tensors) if len(tensors) > 1 else tensors[0]

    def _run(self, shapes: Shapes, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        compiled = self.compiled.get_or_make(shapes, lambda: self._load(shapes))
        results = compiled(arrays, share_inputs=True)
        tensors = [torch.from_numpy(results[place].copy()) for place in range(len(results))]
        if self.frugal:
            del results
            compiled.release_memory()
            return_freed()
        return tensors

    def _load(self, shapes: Shapes) -> openvino.CompiledModel:
        """Load what an earlier process compiled, or compile; large parts are always compiled."""
        if not self.keep or self.path.with_suffix(".bin").stat().st_size > KEPT_BYTES:
            return self._compile(shapes)
        fresh: list[openvino.CompiledModel] = []

        def make(folder: Path) -> dict[str, Any]:
            fresh.append(self._compile(shapes))
            blob = io.BytesIO()
            fresh[0].export_model(blob)
            (folder / BLOB).write_bytes(blob.getbuffer())
            return {}

        kind = f"compiled/{self._digest}"
        try:
            folder, _ = cached(kind, self._key(shapes), make)
        except (QuantFaceError, OSError):
            # The disk is full: this process goes on with what it has compiled.
            return fresh[0] if fresh else self._compile(shapes)
        if fresh:
            if folder.is_relative_to(cache_root()):
                keep_latest(folder, KEPT_SHAPES)
            else:
                # Nobody reads a temporary folder.
                shutil.rmtree(folder, ignore_errors=True)
            return fresh[0]
        try:
            folder.touch()
            return _core().import_model((folder / BLOB).read_bytes(), "CPU", self.options)
        except (OSError, RuntimeError):
            # Another process has removed the file, or this build of OpenVINO cannot read it.
            return self._compile(shapes)

    @cached_property
    def _digest(self) -> str:
        """Digest of the graph and its weights."""
        return file_digest(self.path)[:16] + file_digest(self.path.with_suffix(".bin"))[:16]

    def _key(self, shapes: Shapes) -> Any:
        """Return all that a compiled part depends on, besides its files."""
        processor = _core().get_property("CPU", "FULL_DEVICE_NAME")
        return [openvino.get_version(), processor, self.options, shapes]

    def _compile(self, shapes: Shapes) -> openvino.CompiledModel:
        core = _core()
        model = core.read_model(self.path)
        model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
        with forgetting_pages(self.path.with_suffix(".bin")):
            compiled = core.compile_model(model, "CPU", self.options)
        return_freed()
        return compiled

    def _failure_message(self, shapes: Shapes, error: BaseException) -> str:
        size = self.path.with_suffix(".bin").stat().st_size / 1e9
        detail = "".join(str(error).strip().splitlines()[-1:])
        return (
            f"{self.path.stem} for inputs {shapes}: OpenVINO could not compute it ({detail}); "
            f"its weights alone take about {3 * size + 0.5:.1f} GB of memory"
        )


@cache
def _core() -> openvino.Core:
    """Return the one core of this process."""
    return openvino.Core()


def integer_products(compiled: openvino.CompiledModel) -> dict[str, str]:
    """Map each layer to the precision in which the compiled graph multiplies its weight.

    ``u8`` and ``i8`` mean integer arithmetic. Anything else does not.
    """
    found: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        # At least one of the two names survives fusing and reshaping.
        weight = WEIGHT.fullmatch(node.get_friendly_name())
        if weight:
            found.setdefault(weight[1], set()).update(_precisions(node))
        elif _fact(node, "layerType") in PRODUCTS:
            for layer in PRODUCT.findall(_fact(node, "originalLayersNames")):
                found.setdefault(layer, set()).add(_fact(node, "runtimePrecision"))
    return {layer: ", ".join(sorted(precisions)) for layer, precisions in found.items()}


def _precisions(node: Any) -> set[str]:
    """Return the precisions of the nodes that use a node's output, directly or after a reorder."""
    users = [target.get_node() for out in node.outputs() for target in out.get_target_inputs()]
    reorders = [user for user in users if _fact(user, "layerType") == "Reorder"]
    found = {_fact(user, "runtimePrecision") for user in users if user not in reorders}
    return found.union(*(_precisions(user) for user in reorders))


def _fact(node: Any, key: str) -> str:
    return node.get_rt_info()[key].astype(str)
