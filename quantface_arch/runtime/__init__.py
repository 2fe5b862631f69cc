"""Ways to execute a checkpoint: one table, one interface. Loading any starts here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.runtime import cuda, openvino, reference
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

__all__ = ["RUNTIMES", "Runtime", "available", "load", "resolve"]


@dataclass(frozen=True)
class Runtime:
    """A way to execute a checkpoint.

    Attributes:
        load: (path, build) → a module that restores; see ``load_checkpoint`` for ``build``.
        missing: None where the runtime can be used, else how to get it, as ends a sentence.
        devices: types of torch devices that it runs on.
    """

    load: Callable[[Path, Build], nn.Module]
    missing: Callable[[], str | None]
    devices: tuple[str, ...]


# In the order of ``RUNTIME_NAMES``.
_BACKENDS = (
    Runtime(openvino.load, openvino.missing, ("cpu",)),
    Runtime(reference.load, reference.missing, ("cpu", "cuda")),
    Runtime(cuda.load, cuda.missing, ("cuda",)),
)
RUNTIMES: dict[str, Runtime] = dict(zip(RUNTIME_NAMES, _BACKENDS, strict=True))


def available(device: str = "cpu") -> list[str]:
    """Names of the runtimes that can be used here on a type of device, best first."""
    return [
        name
        for name, runtime in RUNTIMES.items()
        if device in runtime.devices and runtime.missing() is None
    ]


def resolve(name: str = "auto", device: str = "cpu") -> str:
    """The runtime's own name: ``auto`` is the best that is available, others stand for themselves.

    Args:
        device: type of the torch device that is to be used.

    Raises:
        QuantFaceError: no such runtime, or one that cannot be used here (how to get it is said) or
            on that device.
    """
    if name == "auto":
        return available(device)[0]
    if name not in RUNTIMES:
        raise QuantFaceError(
            f"runtime: found {name!r}, allowed are {', '.join(['auto', *RUNTIMES])}"
        )
    runtime = RUNTIMES[name]
    hint = runtime.missing()
    if hint is not None:
        raise QuantFaceError(f"runtime {name}: not available here; {hint}")
    if device not in runtime.devices:
        raise QuantFaceError(
            f"runtime {name}: found device {device!r}, it runs on {', '.join(runtime.devices)}"
        )
    return name


def load(
    path: str | os.PathLike[str], build: Build, runtime: str = "auto", device: str = "cpu"
) -> nn.Module:
    """Load a checkpoint for execution by a runtime.

    Args:
        build: makes the float architecture from the options that the checkpoint holds.
        runtime: ``auto`` or a name of ``RUNTIMES``.
        device: a torch device.

    Raises:
        QuantFaceError: see ``resolve`` and ``load_checkpoint``.
    """
    name = resolve(runtime, torch.device(device).type)
    return RUNTIMES[name].load(Path(path), build).eval().to(device)
