"""The names of the runtimes, for modules that must not import torch."""

from __future__ import annotations

__all__ = ["RUNTIME_NAMES"]

# The best comes first: ``auto`` takes the first one that is available on the device. ``cuda`` is
# experimental. It comes after the reference, which runs everywhere, so ``auto`` never takes it.
RUNTIME_NAMES = ("openvino", "reference", "cuda")
