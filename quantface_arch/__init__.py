"""QuantFace: low-bit one-step diffusion face restoration, a plugin for BasicSR.

Importing this package is cheap: each public name loads its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantface_arch.utils.lazy import lazy_names

if TYPE_CHECKING:
    from quantface_arch.errors import QuantFaceError
    from quantface_arch.pretrained.zoo import load_model
    from quantface_arch.quant.calibration.calibrate import calibrating
    from quantface_arch.quant.checkpoint.save_load import save_checkpoint
    from quantface_arch.quant.config.recipe import Recipe
    from quantface_arch.quant.config.specs import QuantSpec
    from quantface_arch.quant.ptq import quantize
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = [
    "FaceRestorer",
    "QuantFaceError",
    "QuantSpec",
    "Recipe",
    "__version__",
    "calibrating",
    "load_model",
    "quantize",
    "save_checkpoint",
]

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


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
