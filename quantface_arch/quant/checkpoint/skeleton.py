"""Build the float architecture of a checkpoint, no larger than the tensors in it can fill."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.checkpoint.metadata import Metadata

__all__ = ["skeleton"]

# A network may have twice the values of the file, and these in addition for its own masks, index
# tables and the like.
SPARE_VALUES = 1 << 24
SPARE_CALLS = 1 << 10
CALLS_PER_TENSOR = 16
# At the smallest bit width, a byte holds this many values.
PACKED = 4
_NAMES = ("empty", "zeros", "ones", "full", "rand", "randn", "arange", "linspace", "eye")
FACTORIES = frozenset(getattr(torch, name) for name in _NAMES)


def skeleton(path: Path, file: Any, metadata: Metadata, build: Build) -> nn.Module:
    """Build the metadata's ``arch`` without random initialization.

    Args:
        path: the checkpoint's path, for messages.
        file: safetensors' handle, which tells how many values there are to fill a network with.

    Raises:
        QuantFaceError: the architecture cannot be built, or asks for more than the file can fill,
            which is checked before the memory is allocated.
    """
    try:
        with _Bounded(*_capacity(file)):
            return build(metadata.arch)
    except Exception as error:
        # The options reach code of other libraries, which may raise almost any exception.
        ours = isinstance(error, QuantFaceError)
        detail = str(error) if ours else f"arch: {type(error).__name__}: {one_line(error)}"
        raise QuantFaceError(f"{path}: {detail}") from error


def _capacity(file: Any) -> tuple[int, int]:
    """Return how many values a network may ask for, and in how many calls."""
    slices: Mapping[str, Any] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    values = sum(
        prod(item.get_shape()) * (PACKED if item.get_dtype() == "U8" else 1)
        for item in slices.values()
    )
    return 2 * values + SPARE_VALUES, CALLS_PER_TENSOR * len(slices) + SPARE_CALLS


class _Bounded(TorchFunctionMode):
    """A mode in which a network cannot ask for more than a file can fill.

    It raises QuantFaceError if the network asks for too many or too large tensors.
    ``torch.nn.init`` does nothing, because every value will come from the file.
    """

    def __init__(self, values: int, calls: int) -> None:
        super().__init__()
        self.values = values
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in FACTORIES:
            self.calls -= 1
            self.values -= func(*args, **{**kwargs, "device": "meta"}).numel()
            if self.values < 0 or self.calls < 0:
                raise QuantFaceError("arch: asks for more than the tensors in the file can fill")
        return func(*args, **kwargs)
