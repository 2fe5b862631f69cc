"""Ways to execute a checkpoint: one table, one interface. Loading any starts here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime import reference

__all__ = ["RUNTIMES", "Runtime", "available", "load", "resolve"]

Build = Callable[[dict[str, Any]], nn.Module]


@dataclass(frozen=True)
class Runtime:
    """A way to execute a checkpoint.

    Attributes:
        load: (path, build) → a module that restores; see ``load_checkpoint`` for ``build``.
        missing: None where the runtime can be used, else how to get it, as ends a sentence.
    """

    load: Callable[[Path, Build], nn.Module]
    missing: Callable[[], str | None]


# Best first: ``auto`` takes the first that can be used.
RUNTIMES: dict[str, Runtime] = {
    "reference": Runtime(reference.load, reference.missing),
}


def available() -> list[str]:
    """Names of the runtimes that can be used here, best first."""
    return [name for name, runtime in RUNTIMES.items() if runtime.missing() is None]


def resolve(name: str = "auto") -> str:
    """The runtime's own name: ``auto`` is the best that is available, others stand for themselves.

    Raises:
        QuantFaceError: no such runtime, or one that cannot be used here (how to get it is said).
    """
    if name == "auto":
        return available()[0]
    if name not in RUNTIMES:
        raise QuantFaceError(
            f"runtime: found {name!r}, allowed are {', '.join(['auto', *RUNTIMES])}"
        )
    hint = RUNTIMES[name].missing()
    if hint is not None:
        raise QuantFaceError(f"runtime {name}: not available here; {hint}")
    return name


def load(path: str | os.PathLike[str], build: Build, runtime: str = "auto") -> nn.Module:
    """Load a checkpoint for execution by a runtime.

    Args:
        build: makes the float architecture from the options that the checkpoint holds.
        runtime: ``auto`` or a name of ``RUNTIMES``.

    Raises:
        QuantFaceError: see ``resolve`` and ``load_checkpoint``.
    """
    return RUNTIMES[resolve(runtime)].load(Path(path), build)
