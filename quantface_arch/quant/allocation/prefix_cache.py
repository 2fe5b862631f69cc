"""Run a network again with one layer replaced, and compute only that layer and later ones."""

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
    """A recorded call of a module.

    ``end`` is the index of the first call that is not inside this one. ``output`` is None if the
    call cannot be replayed.
    """

    module: nn.Module
    end: int = 0
    output: Tensor | None = None


class PrefixCache:
    """The recorded forward pass of one batch through a network.

    A run with one layer replaced repeats the recorded pass up to that layer: every block that ends
    before the layer returns its recorded output, and the block around the layer is entered. From
    the layer on, everything is computed. The result equals that of a plain run bit by bit.

    A call is replayed if it returned one tensor and did not change its inputs; other calls are
    entered. Quantized layers and the modules that contain them are recorded, which takes the memory
    of all their outputs together.

    Attributes:
        output: float, the network's output.

    Args:
        model: a network in evaluation mode; no method changes it permanently.
        batch: the network's input.
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
        """Return the network's output with ``substitute`` in place of ``layer``.

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
                # We copy, because the caller may change the output in place.
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
    """Wrap the modules' ``forward`` temporarily, including one that is set on an instance."""
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
