"""A part of a network as one CUDA graph: one launch instead of hundreds of kernel launches."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.fx import GraphModule

from quantface_arch.utils.lru import LRUCache

__all__ = ["GraphedPart", "keep_layout"]

# The graphs of this many shapes are kept. Each holds the memory of a run.
SHAPES = 2
# A method runs this many times before it is captured. In these runs, kernels are compiled and
# libraries choose their algorithms.
WARM_UP = 3


def _compile_graph(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile by torch's own backend, after ``keep_layout``."""
    keep_layout(graph)
    return lookup_backend("inductor")(graph, inputs)


def keep_layout(graph: GraphModule) -> None:
    """Write the results of nearest-neighbour doublings channels-last, in place.

    By default the compiler writes them channels-first, which took longer than the convolution that
    follows.
    """
    for node in graph.graph.find_nodes(op="call_function", target=F.interpolate):
        if len(node.args) == 1 and node.kwargs == {"scale_factor": 2.0, "mode": "nearest"}:
            node.target, node.kwargs = _doubled, {}
    graph.recompile()


def _doubled(x: Tensor) -> Tensor:
    """Double x (N, C, H, W) by nearest neighbours; the result is channels-last in memory."""
    images, channels, height, width = x.shape
    pixels = x.movedim(1, -1)[:, :, None, :, None]
    pixels = pixels.expand(images, height, 2, width, 2, channels)
    return pixels.reshape(images, 2 * height, 2 * width, channels).movedim(-1, 1)


class Captured(NamedTuple):
    """A graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class GraphedPart:
    """A callable that replaces a method of a network.

    Args:
        name: the part's name, for messages.
        method: a function of tensors alone that returns a tensor or a tuple of tensors.
        dtype: the type in which it is computed.
        graphed: compile the method and capture it as a graph. Where that fails, or if this is
            False, the method is called directly.
    """

    def __init__(
        self, name: str, method: Callable[..., Any], dtype: torch.dtype, graphed: bool
    ) -> None:
        self.name, self.method, self.dtype, self.graphed = name, method, dtype, graphed
        # A graph reads and writes the same tensors in every run, so threads take turns.
        self._lock = threading.Lock()
        self.captured: LRUCache[Captured] = LRUCache(SHAPES)

    # Inference mode is off, since its tensors could not be written to outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run on tensors of one device; the results are new float32 tensors.

        Threads may call it, on the same CUDA stream, and take turns.
        """
        given = [x.to(self.dtype) for x in inputs]
        with self._lock:
            outputs = self._replay(given) if self.graphed else None
            if outputs is None:
                outputs = self.method(*given)
            if isinstance(outputs, Tensor):
                return outputs.to(torch.float32, copy=True)
            return tuple(output.to(torch.float32, copy=True) for output in outputs)

    def _replay(self, inputs: list[Tensor]) -> Any:
        """Run the graph for these shapes and return its outputs; None if it cannot be made."""
        key = tuple((x.shape, x.device) for x in inputs)
        try:
            graph, places, outputs = self.captured.get_or_make(key, lambda: self._capture(inputs))
        except RuntimeError as error:
            self.graphed = False
            detail = "".join(str(error).strip().splitlines()[:1])
            warnings.warn(
                f"part {self.name}: it could not be compiled as a CUDA graph ({detail}); it runs "
                "kernel by kernel, which is slower",
                stacklevel=4,
            )
            return None
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        return outputs

    def _capture(self, inputs: list[Tensor]) -> Captured:
        # One program is compiled per shape. A program for any size would be slower.
        method = torch.compile(self.method, dynamic=False, backend=_compile_graph)
        with torch.cuda.device_of(inputs[0]):
            places = [x.clone() for x in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    method(*places)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = method(*places)
        return Captured(graph, places, outputs)
