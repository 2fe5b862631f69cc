"""Take the tensors out of a pickle without running what else it names.

A training checkpoint holds more than weights: options, callbacks and random states of its trainer,
whose classes are not installed here and must not run. Each of their objects becomes an empty
placeholder.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["INERT_PICKLE"]

# Rebuilding tensors needs these names and no others. None of them calls what the file chooses.
_NEEDED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "TypedStorage"),
    ("torch.storage", "UntypedStorage"),
}


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
    """An unpickler that imports only the functions that rebuild tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NEEDED or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _Placeholder


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What torch.load uses of a ``pickle_module``.
INERT_PICKLE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="tensors only")
