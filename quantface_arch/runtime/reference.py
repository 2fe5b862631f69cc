"""The oracle: a checkpoint executed by torch in floating point, quantization simulated."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.checkpoint.save_load import load_checkpoint

__all__ = ["load", "missing"]


def missing() -> str | None:
    """Always usable: None."""
    return None


def load(path: Path, build: Build) -> nn.Module:
    """Load a float or quantized checkpoint; no faster than floating point, see the checkpoint."""
    return load_checkpoint(path, build)
