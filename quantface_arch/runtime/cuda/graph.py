"""A part of a network, launched as one CUDA graph: hundreds of kernels cost one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quantface_arch.runtime.recent import Recent

__all__ = ["GraphedPart"]

# Shapes whose graphs are kept; each holds the memory of a run.
SHAPES = 2
# Runs before a capture: kernels are compiled and libraries choose their algorithms.
WARM_UP = 3


class Captured(NamedTuple):
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class GraphedPart:
    """Callable like the method that it replaces.

    Args:
        name: of the part, for messages.
        method: a function of tensors alone that gives a tensor or a tuple of tensors.
        dtype: in which it is computed.
        graphed: whether to capture graphs; else, and where that fails, the method is called.
    """

    def __init__(
        self, name: str, method: Callable[..., Any], dtype: torch.dtype, graphed: bool
    ) -> None:
        self.name, self.method, self.dtype, self.graphed = name, method, dtype, graphed
        self.captured: Recent[Captured] = Recent(SHAPES)
        self.constants = Constants()

    # Not in inference mode, whose tensors could not be written to outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run on tensors of one device; the results are float32, and the caller's own."""
        given = [x.to(self.dtype) for x in inputs]
        outputs = self._replay(given) if self.graphed else None
        if outputs is None:
            outputs = self.method(*given)
        if isinstance(outputs, Tensor):
            return outputs.to(torch.float32, copy=True)
        return tuple(output.to(torch.float32, copy=True) for output in outputs)

    def _replay(self, inputs: list[Tensor]) -> Any:
        """What the graph of these shapes gives; None where there can be none."""
        key = tuple((x.shape, x.device) for x in inputs)
        try:
            graph, places, outputs = self.captured.get_or_make(key, lambda: self._capture(inputs))
        except RuntimeError as error:
            self.graphed = False
            detail = "".join(str(error).strip().splitlines()[:1])
            warnings.warn(
                f"part {self.name}: no CUDA graph could be captured ({detail}); it runs "
                "kernel by kernel, which is slower",
                stacklevel=4,
            )
            return None
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        return outputs

    def _capture(self, inputs: list[Tensor]) -> Captured:
        with torch.cuda.device_of(inputs[0]), self.constants:
            places = [x.clone() for x in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.method(*places)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.method(*places)
        return Captured(graph, places, outputs)


class Constants(TorchFunctionMode):
    """Within it, ``torch.tensor`` of the same numbers gives the same tensor.

    A network that makes one of plain numbers, of its timestep say, copies from the CPU's memory,
    which no graph can hold; made while warming up, it is on the GPU already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.tensor:
            return func(*args, **kwargs)
        key = repr((args, kwargs))
        if key not in self.made:
            self.made[key] = func(*args, **kwargs)
        return self.made[key]
