"""QuantFace: low-bit one-step diffusion face restoration, a plugin for BasicSR.

Importing this package is cheap: each public name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "FaceRestorer": "quantface_arch.restore.restorer",
    "QuantFaceError": "quantface_arch.errors",
    "QuantSpec": "quantface_arch.quant.config.specs",
    "Recipe": "quantface_arch.quant.config.recipe",
    "calibrating": "quantface_arch.quant.calibration.calibrate",
    "load_model": "quantface_arch.pretrained.zoo",
    "quantize": "quantface_arch.quant.ptq",
    "save_checkpoint": "quantface_arch.quant.checkpoint.save_load",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
