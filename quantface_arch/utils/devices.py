"""Check the torch devices that commands name."""

from __future__ import annotations

from quantface_arch.errors import UsageError, one_line

__all__ = ["check_device"]


def check_device(name: str) -> str:
    """Return the name of a torch device if this machine has it.

    Raises:
        UsageError: there is no such device here.
    """
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
