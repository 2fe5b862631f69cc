"""The method, on torch alone: nothing here knows a framework, an architecture or a runtime."""

from __future__ import annotations

from quantface_arch.quant.api import (
    balance_stage,
    branch_stage,
    calibration_stage,
    prepare,
    quantize,
)
from quantface_arch.quant.balance import LayerBalance, load_balance, save_balance
from quantface_arch.quant.calibrate import Calibration, calibrating
from quantface_arch.quant.checkpoint import (
    load_checkpoint,
    read_metadata,
    round_float_parts,
    save_checkpoint,
)
from quantface_arch.quant.convert import BitMap, ConversionReport, convert
from quantface_arch.quant.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    State,
    quant_layers,
)
from quantface_arch.quant.recipe import Recipe
from quantface_arch.quant.resume import CalibrationStore
from quantface_arch.quant.specs import BalanceSpec, BranchSpec, QuantSpec
from quantface_arch.quant.training import settle, trainable

__all__ = [
    "BalanceSpec",
    "BitMap",
    "BranchSpec",
    "Calibration",
    "CalibrationStore",
    "ConversionReport",
    "LayerBalance",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantSpec",
    "Recipe",
    "State",
    "balance_stage",
    "branch_stage",
    "calibrating",
    "calibration_stage",
    "convert",
    "load_balance",
    "load_checkpoint",
    "prepare",
    "quant_layers",
    "quantize",
    "read_metadata",
    "round_float_parts",
    "save_balance",
    "save_checkpoint",
    "settle",
    "trainable",
]
