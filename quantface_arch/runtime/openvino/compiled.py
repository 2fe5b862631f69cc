"""A part of a network, compiled for each input shape that it receives."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime.openvino.blobs import Blobs, Shapes, core
from quantface_arch.runtime.openvino.memory import forgetting_pages, return_freed
from quantface_arch.utils.lru import LRUCache
from quantface_arch.utils.threads import thread_count

__all__ = ["WEIGHT", "CompiledPart", "compile_options", "integer_products"]

# This many shapes stay compiled. Each holds a copy of the weights.
SHAPES = 2
# These match the names of a lowered layer's weight and product in the compiled graph.
WEIGHT = re.compile(r"self\.network\.(.+)\.integer\.weight")
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
PRODUCT = re.compile(r"__module\.network\.([^,]+?)\.integer/aten::(?:_convolution|linear)")


def compile_options(exact: bool) -> dict[str, Any]:
    """Return the options with which OpenVINO compiles, see ``CompiledPart``."""
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": thread_count(),
        # With pinning, every process would bind its threads to the first cores, and several
        # processes would share them.
        "ENABLE_CPU_PINNING": False,
    }
    return {**options, "INFERENCE_PRECISION_HINT": "f32"} if exact else options


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
        self.path, self.frugal = path, frugal
        self.options = compile_options(exact)
        # A compiled model has one request, whose results the next call overwrites. More requests
        # would need more memory and, on the same threads, be no faster.
        self._lock = threading.Lock()
        self.blobs = Blobs(path, self.options, keep)
        self._early: Future[tuple[Shapes, openvino.CompiledModel] | None] | None = None
        self.compiled: LRUCache[openvino.CompiledModel] = LRUCache(SHAPES)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run on arrays; the results are float32. Threads may call it, and take turns.

        Raises:
            QuantFaceError: the shapes cannot be compiled or computed, for example for lack of
                memory.
        """
        shapes = tuple(x.shape for x in inputs)
        arrays = [np.ascontiguousarray(x, np.float32) for x in inputs]
        try:
            with self._lock:
                results = self._run(shapes, arrays)
        except (RuntimeError, MemoryError) as error:
            raise QuantFaceError(self._failure_message(shapes, error)) from error
        return tuple(results) if len(results) > 1 else results[0]

    def _run(self, shapes: Shapes, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        compiled = self.compiled.get_or_make(shapes, lambda: self._load(shapes))
        results = compiled(arrays, share_inputs=True)
        copies = [results[place].copy() for place in range(len(results))]
        if self.frugal:
            del results
            compiled.release_memory()
            return_freed()
        return copies

    def load_early(self, pool: Executor) -> None:
        """Begin to load, in another thread, what was compiled for the shapes used last.

        Loading a small part takes longer than running it.
        """
        if self.blobs.wanted:
            self._early = pool.submit(self.blobs.latest)

    def _load(self, shapes: Shapes) -> openvino.CompiledModel:
        early, self._early = self._early, None
        found = early.result() if early is not None else None
        if found is not None and found[0] == shapes:
            return found[1]
        if self.blobs.wanted:
            return self.blobs.load(shapes, lambda: self._compile(shapes))
        return self._compile(shapes)

    def _compile(self, shapes: Shapes) -> openvino.CompiledModel:
        model = core().read_model(self.path)
        model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
        with forgetting_pages(self.path.with_suffix(".bin")):
            compiled = core().compile_model(model, "CPU", self.options)
        return_freed()
        return compiled

    def _failure_message(self, shapes: Shapes, error: BaseException) -> str:
        size = self.path.with_suffix(".bin").stat().st_size / 1e9
        detail = "".join(str(error).strip().splitlines()[-1:])
        return (
            f"{self.path.stem} for inputs {shapes}: OpenVINO could not compute it ({detail}); "
            f"its weights alone take about {3 * size + 0.5:.1f} GB of memory"
        )


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
