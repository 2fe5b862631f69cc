"""The runtimes that can execute a checkpoint, in one table with one interface.

Importing this package does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime import cuda, openvino, reference
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantface_arch.quant.checkpoint.builder import Build
    from quantface_arch.runtime.timing import LayerTimer

__all__ = ["RUNTIMES", "Runtime", "available", "device_type", "load", "resolve"]


@dataclass(frozen=True)
class Runtime:
    """A runtime that can execute a checkpoint.

    Attributes:
        load: loads a checkpoint from (path, build) as a module that restores. See
            ``load_checkpoint`` for ``build``.
        missing: returns None if the runtime can be used here, else an install hint, worded to end a
            sentence.
        devices: the types of torch devices on which it runs.
        timer: returns how it times a single layer; None if it simulates quantization, so that all
            layers take equally long.
    """

    load: Callable[[Path, Build], nn.Module]
    missing: Callable[[], str | None]
    devices: tuple[str, ...]
    timer: Callable[[], LayerTimer] | None = None


# These are in the order of ``RUNTIME_NAMES``.
_BACKENDS = (
    Runtime(openvino.load, openvino.missing, ("cpu",), openvino.layer_timer),
    Runtime(reference.load, reference.missing, ("cpu", "cuda")),
    Runtime(cuda.load, cuda.missing, ("cuda",), cuda.layer_timer),
)
RUNTIMES: dict[str, Runtime] = dict(zip(RUNTIME_NAMES, _BACKENDS, strict=True))


def device_type(device: str | torch.device) -> str:
    """Return the type of a torch device, such as ``cuda`` of ``cuda:0``."""
    return str(device).partition(":")[0]


def available(device: str = "cpu") -> list[str]:
    """Return the names of the runtimes that can be used on a type of device, best first."""
    return [
        name
        for name, runtime in RUNTIMES.items()
        if device in runtime.devices and runtime.missing() is None
    ]


def resolve(name: str = "auto", device: str = "cpu") -> str:
    """Return the name of the runtime to use: for ``auto`` the best one that is available.

    Args:
        device: the type of the torch device to run on.

    Raises:
        QuantFaceError: there is no such runtime, or it cannot be used here or on that device. The
            message says how to get it.
    """
    if name == "auto":
        found = available(device)
        if not found:
            raise QuantFaceError("no runtime is installed: pip install openvino")
        return found[0]
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
            f"runtime {name}: found device {device!r}, it runs only on {', '.join(runtime.devices)}"
        )
    return name


def load(
    path: str | os.PathLike[str],
    build: Build,
    runtime: str = "auto",
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a checkpoint for execution by a runtime.

    Args:
        build: builds the float architecture from the options in the checkpoint.
        runtime: ``auto`` or a name in ``RUNTIMES``.
        device: a torch device.

    Raises:
        QuantFaceError: see ``resolve`` and ``load_checkpoint``.
    """
    name = resolve(runtime, device_type(device))
    return RUNTIMES[name].load(Path(path), build).eval().to(device)
