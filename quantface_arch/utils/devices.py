"""Check the torch devices that commands name."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

from quantface_arch.errors import QuantFaceError, UsageError, one_line
from quantface_arch.utils.installation import need

__all__ = ["check_device", "has_cuda"]

# One of these files exists on Linux where a driver for GPUs is loaded that torch calls CUDA.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu", "/dev/nvgpu")


def has_cuda() -> bool:
    """Return whether torch finds a GPU; without a driver, torch is not imported."""
    on_linux = sys.platform == "linux"
    driver = any(map(os.path.exists, _DRIVERS)) if on_linux else shutil.which("nvidia-smi")
    if not driver or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def check_device(name: str) -> str:
    """Return the name of a torch device if this machine has it.

    Raises:
        UsageError: there is no such device here, or torch is missing.
    """
    if name == "cpu":
        return name
    try:
        need(f"--device {name}")
    except QuantFaceError as error:
        raise UsageError(str(error)) from None
    # Import this late, because importing torch takes seconds.
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"--device {name}: this machine has {count} CUDA devices")
        if device.type == "meta":
            raise RuntimeError("nothing is computed on it")
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = one_line(str(error).partition("\n")[0])
        raise UsageError(
            f"unknown --device {name!r}: allowed are cpu, cuda, cuda:0 and the like ({reason})"
        ) from error
    return name
