"""Take the tensors out of a pickle without running what else it names.

A training checkpoint holds more than weights: options, callbacks and random states of its trainer,
whose classes are not installed here and must not run. Each of their objects becomes an empty
placeholder.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import IO, Any

import torch

__all__ = ["load_tensors"]

# Rebuilding tensors needs these names and no others. torch.load finds the storages itself.
_TYPES = {("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device")}
_FUNCTIONS = {"_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2"}
# With this variable torch.load refuses every module that takes the place of pickle.
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_tensors(source: IO[bytes]) -> Any:
    """Load a file of ``torch.save`` with a placeholder for every object of an unknown class.

    No code that the file names is run or imported.
    """
    forced = os.environ.pop(_FORCED, None)
    try:
        # torch.load takes no ``weights_only`` beside a module, and the module makes it safe here.
        return torch.load(source, "cpu", pickle_module=_PICKLE, weights_only=False)
    finally:
        if forced is not None:
            os.environ[_FORCED] = forced


class _Function:
    """A function that rebuilds tensors; a pickle can call it but not change it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        pass


class _Placeholder(dict):
    """A placeholder for an object of an unknown class, which accepts any unpickling step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Placeholder:
        return self

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    # A dict cannot be a key; an object of the class in whose place this stands may be one.
    def __hash__(self) -> int:  # pyright: ignore
        return id(self)


class _Unpickler(pickle.Unpickler):
    """An unpickler that imports only what rebuilds tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES:
            return super().find_class(module, name)
        if module == "torch._utils" and name in _FUNCTIONS:
            return _Function(super().find_class(module, name))
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        # A class of its own, as a pickle may set attributes of what it is given.
        return type("Placeholder", (_Placeholder,), {})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What torch.load uses of a ``pickle_module``.
_PICKLE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="tensors only")
