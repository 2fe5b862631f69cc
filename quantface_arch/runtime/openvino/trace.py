"""From a lowered torch network to OpenVINO's own representation, part by part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint import load_checkpoint
from quantface_arch.quant.convert import replace_module
from quantface_arch.runtime.lowering import IntegerProduct, Lowering

__all__ = ["parts_of", "trace_checkpoint"]

Build = Callable[[dict[str, Any]], nn.Module]
# Side of the square that networks are traced on; the trace holds for others.
SIZE = 128


class Constant(nn.Module):
    """Gives the same tensor, whatever it is given."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


class Part(nn.Module):
    """A method of a network as a module, which is what can be traced."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.network, self.name)(*inputs)


def parts_of(network: nn.Module) -> Sequence[str]:
    """Names of the methods that are compiled, in the order in which they run."""
    return getattr(network, "parts", ("forward",))


@torch.no_grad()
def trace_checkpoint(path: Path, build: Build, lowering: Lowering, folder: Path) -> dict[str, Any]:
    """Write ``NAME.xml`` and ``NAME.bin`` of every part.

    Returns:
        ``exact``: whether what is not an integer product is to be computed in float32, since it
        stands for the reference.

    Raises:
        QuantFaceError: see ``load_checkpoint`` and ``Lowering``; OpenVINO lacks an operator.
    """
    network = load_checkpoint(path, build, lowering)
    constants = getattr(network, "constant_layers", dict)()
    for name, value in constants.items():
        replace_module(network, network.get_submodule(name), Constant(value))
    recorded = _record(network)
    for name in tqdm(parts_of(network), desc=f"compiling {path.stem}, once", unit="part"):
        inputs, called = recorded[name]
        with _only(network, called):
            model = _converted(network, name, inputs, path)
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    products = [module for module in network.modules() if isinstance(module, IntegerProduct)]
    return {"exact": not products or not all(product.folded for product in products)}


def _record(network: nn.Module) -> dict[str, tuple[tuple[Tensor, ...], set[nn.Module]]]:
    """What every part is given when the network sees a picture, and which modules it calls."""
    found: dict[str, tuple[tuple[Tensor, ...], set[nn.Module]]] = {}
    calls: list[nn.Module] = []

    def recording(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def record(*inputs: Tensor) -> Any:
            before = len(calls)
            outputs = method(*inputs)
            found[name] = inputs, set(calls[before:])
            return outputs

        return record

    hooks = [
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
        for module in network.modules()
    ]
    for name in parts_of(network):
        vars(network)[name] = recording(name, getattr(network, name))
    try:
        network(torch.zeros(1, 3, SIZE, SIZE))
    finally:
        for name in parts_of(network):
            del vars(network)[name]
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _only(network: nn.Module, called: set[nn.Module]) -> Iterator[None]:
    """Hide the branches of a network that a part does not reach: tracing is slow in modules.

    A module that is not called may still lend its tensors to the one that holds it, if that is.
    """
    hidden = [
        (parent, name, child)
        for parent in network.modules()
        if parent not in called
        for name, child in parent._modules.items()
        if child is not None and child._modules and called.isdisjoint(child.modules())
    ]
    for parent, name, _ in hidden:
        parent._modules[name] = None
    try:
        yield
    finally:
        for parent, name, child in hidden:
            parent._modules[name] = child


def _converted(
    network: nn.Module, name: str, inputs: tuple[Tensor, ...], path: Path
) -> openvino.Model:
    with warnings.catch_warnings():
        # Of branches on sizes; that they hold for other sizes is tested.
        warnings.simplefilter("ignore")
        try:
            return openvino.convert_model(Part(network, name), example_input=inputs)
        except Exception as error:
            detail = str(error).strip().splitlines()[-1:]
            raise QuantFaceError(
                f"{path}: {type(network).__name__}.{name} cannot be compiled by OpenVINO "
                f"({''.join(detail)}); choose the runtime reference"
            ) from error
