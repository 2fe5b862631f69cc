"""Record the inputs and the target outputs of a network's blocks, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError

__all__ = [
    "BlockCall",
    "Networks",
    "converter",
    "execution_order",
    "floats",
    "mapped",
    "record",
]

# A block whose inputs and targets take more than this is recorded in bfloat16.
LARGE_BYTES = 2**30


@dataclass(frozen=True)
class Networks:
    """A student and its teacher, and the batches of images (n, 3, H, W) that both see."""

    student: nn.Module
    teacher: nn.Module
    batches: Sequence[Tensor]


class _Reached(Exception):
    """Ends a forward pass at the recorded block."""


@dataclass(frozen=True)
class BlockCall:
    """The inputs of a block in one batch and the outputs that it should give, on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: list[Tensor]


@torch.no_grad()
def execution_order(net: nn.Module, batch: Tensor, patterns: Sequence[str]) -> list[str]:
    """Return the names of the outermost matching modules that run, in the order of execution.

    Raises:
        QuantFaceError: a pattern matches no module that runs.
    """
    called: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
        for name, module in net.named_modules()
        if name and any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    try:
        net(_moved(batch, net))
    finally:
        for handle in handles:
            handle.remove()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in called):
            raise QuantFaceError(f"reconstruct: block {pattern!r} matches no module that runs")
    return [name for name in called if not any(name.startswith(f"{outer}.") for outer in called)]


@torch.no_grad()
def record(networks: Networks, name: str) -> list[BlockCall]:
    """Return the student's inputs and the teacher's outputs of a block for each batch.

    Raises:
        QuantFaceError: the teacher has no such block, or a value is not finite.
    """
    if name not in dict(networks.teacher.named_modules()):
        raise QuantFaceError(f"reconstruct: the teacher has no block {name!r}")
    calls = []
    dtype = None
    for batch in networks.batches:
        args, kwargs = _watched(networks.student, name, batch, "input")
        targets = floats(_watched(networks.teacher, name, batch, "output"))
        if not all(bool(value.isfinite().all()) for value in [*targets, *floats((args, kwargs))]):
            raise QuantFaceError(f"block {name}: its input or the teacher's output is not finite")
        if dtype is None:
            size = sum(value.numel() for value in [*targets, *floats((args, kwargs))])
            dtype = (
                torch.bfloat16 if 4 * size * len(networks.batches) > LARGE_BYTES else torch.float32
            )
        keep = converter(torch.device("cpu"), dtype)
        calls.append(BlockCall(mapped(args, keep), mapped(kwargs, keep), mapped(targets, keep)))
    return calls


def _watched(net: nn.Module, name: str, batch: Tensor, what: str) -> Any:
    """Run a network up to a block; return the block's (args, kwargs), or its output."""
    caught: list[Any] = []

    def reach(value: Any) -> None:
        caught.append(value)
        raise _Reached

    block = net.get_submodule(name)
    if what == "input":
        handle = block.register_forward_pre_hook(lambda _, *call: reach(call), with_kwargs=True)
    else:
        handle = block.register_forward_hook(lambda *call: reach(call[-1]))
    try:
        net(_moved(batch, net))
    except _Reached:
        return caught[0]
    finally:
        handle.remove()
    raise QuantFaceError(f"block {name}: it does not run in the teacher")


def converter(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function that moves tensors to a device and floating-point ones to a dtype."""

    def convert(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else None)

    return convert


def _moved(batch: Tensor, net: nn.Module) -> Tensor:
    return batch.to(next(net.parameters()).device)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with every tensor in its tuples, lists and mappings changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def floats(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in floats(item)]
