"""The reference runtime: torch in floating point, with simulated quantization."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.checkpoint.save_load import load_checkpoint

__all__ = ["load", "missing"]


def missing() -> str | None:
    """Return None: this runtime can always be used."""
    return None


def load(path: Path, build: Build) -> nn.Module:
    """Load a float or quantized checkpoint.

    The result is as slow as the float network. Other runtimes are tested against it.
    """
    return load_checkpoint(path, build)
