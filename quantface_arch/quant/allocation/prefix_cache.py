"""Run a network again with one layer changed, computing only what comes after that layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.nn.layers import QuantLayer

__all__ = ["PrefixCache"]

Forward = Callable[..., Any]


@dataclass
class _Call:
    """One call of a module: everything up to ``end`` happened inside it.

    ``output`` is None where the call cannot be replayed.
    """

    module: nn.Module
    end: int = 0
    output: Tensor | None = None


class PrefixCache:
    """One batch's way through a network, recorded.

    A run with one layer substituted is the recorded one up to that layer. Until it is reached,
    modules return what they returned then: whole blocks where a block had ended by then, else the
    parts of it that had. From the layer on everything is computed. The result equals a plain run's
    bit by bit.

    A call is replayed if it returned one tensor and left its inputs as they were; others are
    entered. Recorded are quantized layers and the modules that hold any; memory is that of all
    their outputs together.

    Attributes:
        output: float, what the network returned.

    Args:
        model: in evaluation mode; nothing about it is changed once a call has returned.
        batch: its input.
    """

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self.model = model
        self.batch = batch
        self.calls: list[_Call] = []
        self.modules = [
            module
            for module in model.modules()
            if module is not model and any(isinstance(m, QuantLayer) for m in module.modules())
        ]
        self.output = self._run(self._recorded)

    def run(self, layer: QuantLayer, substitute: nn.Module) -> Tensor:
        """The network's output with ``substitute`` in the place of ``layer``.

        Raises:
            QuantFaceError: the batch never reached the layer.
        """
        first = next((i for i, call in enumerate(self.calls) if call.module is layer), None)
        if first is None:
            raise QuantFaceError(f"layer {layer.name}: the network does not use it")
        cursor = 0

        def replayed(module: nn.Module, forward: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal cursor
                if module is layer:
                    cursor = len(self.calls)
                    return substitute(*args, **kwargs)
                if cursor >= first:
                    return forward(*args, **kwargs)
                recorded = self.calls[cursor]
                assert recorded.module is module
                if recorded.end <= first and recorded.output is not None:
                    cursor = recorded.end
                    return recorded.output.clone()
                cursor += 1
                return forward(*args, **kwargs)

            return call

        return self._run(replayed)

    def _recorded(self, module: nn.Module, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            entry = _Call(module)
            self.calls.append(entry)
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            versions = [x._version for x in inputs]
            output = forward(*args, **kwargs)
            entry.end = len(self.calls)
            untouched = versions == [x._version for x in inputs]
            if isinstance(output, Tensor) and untouched:
                # A copy: whoever gets the output may change it in place.
                entry.output = output.clone()
            return output

        return call

    @torch.no_grad()
    def _run(self, wrap: Callable[[nn.Module, Forward], Forward]) -> Tensor:
        with _wrapped(self.modules, wrap):
            return self.model(self.batch)


@contextmanager
def _wrapped(
    modules: list[nn.Module], wrap: Callable[[nn.Module, Forward], Forward]
) -> Iterator[None]:
    """Give modules other forwards for a while, also where they have one of their own already."""
    own = {module: vars(module).get("forward") for module in modules}
    try:
        for module in modules:
            module.forward = wrap(module, module.forward)
        yield
    finally:
        for module, forward in own.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
