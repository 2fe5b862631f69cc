"""The method, on torch alone: nothing here knows a framework, an architecture or a runtime."""

from __future__ import annotations

from quantface_arch.quant.api import quantize
from quantface_arch.quant.calibrate import Calibration, calibrating
from quantface_arch.quant.checkpoint import (
    load_checkpoint,
    read_metadata,
    round_float_parts,
    save_checkpoint,
)
from quantface_arch.quant.convert import ConversionReport, convert
from quantface_arch.quant.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    State,
    quant_layers,
)
from quantface_arch.quant.resume import CalibrationStore
from quantface_arch.quant.specs import QuantSpec, Recipe

__all__ = [
    "Calibration",
    "CalibrationStore",
    "ConversionReport",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantSpec",
    "Recipe",
    "State",
    "calibrating",
    "convert",
    "load_checkpoint",
    "quant_layers",
    "quantize",
    "read_metadata",
    "round_float_parts",
    "save_checkpoint",
]
