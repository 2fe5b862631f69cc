"""The names of the runtimes and their modes, for modules that must not import torch."""

from __future__ import annotations

__all__ = ["MODES", "RUNTIME_NAMES"]

# The best comes first: ``auto`` takes the first one that is available on the device. ``cuda`` is
# experimental. It comes after the reference, which runs everywhere, so ``auto`` never takes it.
RUNTIME_NAMES = ("openvino", "reference", "cuda")
# How layers are lowered, see ``runtime.lowering``.
MODES = ("auto", "faithful", "folded")
