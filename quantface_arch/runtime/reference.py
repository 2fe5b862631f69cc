"""The reference runtime: torch in floating point, with simulated quantization."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from quantface_arch.quant.checkpoint.builder import Build

__all__ = ["load", "missing"]


def missing() -> str | None:
    """Return None if it can be used here, else an install hint."""
    if find_spec("torch") and find_spec("safetensors"):
        return None
    return "pip install . in the repository of QuantFace"


def load(path: Path, build: Build) -> nn.Module:
    """Load a float or quantized checkpoint.

    The result is as slow as the float network. Other runtimes are tested against it.
    """
    from quantface_arch.quant.checkpoint.save_load import load_checkpoint

    return load_checkpoint(path, build)
