"""The quantization method. It depends on torch alone: no framework, architecture or runtime."""

from __future__ import annotations

from quantface_arch.quant.calibration.calibrate import Calibration, calibrating
from quantface_arch.quant.calibration.run import CalibrationData
from quantface_arch.quant.calibration.store import CalibrationStore
from quantface_arch.quant.checkpoint.balance_file import load_balance, save_balance
from quantface_arch.quant.checkpoint.save_load import (
    load_checkpoint,
    read_metadata,
    round_float_parts,
    save_checkpoint,
)
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import BalanceSpec, BranchSpec, QuantSpec
from quantface_arch.quant.finetune.trainable import fold_trained, trainable
from quantface_arch.quant.nn.convert import BitMap, ConversionReport, convert
from quantface_arch.quant.nn.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    State,
    quant_layers,
)
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ptq import (
    balance_stage,
    branch_stage,
    calibration_stage,
    prepare,
    quantize,
)

__all__ = [
    "BalanceSpec",
    "BitMap",
    "BranchSpec",
    "Calibration",
    "CalibrationData",
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
    "fold_trained",
    "load_balance",
    "load_checkpoint",
    "prepare",
    "quant_layers",
    "quantize",
    "read_metadata",
    "round_float_parts",
    "save_balance",
    "save_checkpoint",
    "trainable",
]
