"""The quantization method. It depends on torch alone: no framework, architecture or runtime.

Importing this package is cheap: each public name loads its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantface_arch.utils.lazy import lazy_names

if TYPE_CHECKING:
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
    from quantface_arch.quant.config.branch_spec import BranchSpec
    from quantface_arch.quant.config.recipe import Recipe
    from quantface_arch.quant.config.specs import BalanceSpec, QuantSpec
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

_HOMES = {
    "BalanceSpec": "quantface_arch.quant.config.specs",
    "BitMap": "quantface_arch.quant.nn.convert",
    "BranchSpec": "quantface_arch.quant.config.branch_spec",
    "Calibration": "quantface_arch.quant.calibration.calibrate",
    "CalibrationData": "quantface_arch.quant.calibration.run",
    "CalibrationStore": "quantface_arch.quant.calibration.store",
    "ConversionReport": "quantface_arch.quant.nn.convert",
    "LayerBalance": "quantface_arch.quant.ops.balance",
    "QuantConv1d": "quantface_arch.quant.nn.layers",
    "QuantConv2d": "quantface_arch.quant.nn.layers",
    "QuantLayer": "quantface_arch.quant.nn.layers",
    "QuantLinear": "quantface_arch.quant.nn.layers",
    "QuantSpec": "quantface_arch.quant.config.specs",
    "Recipe": "quantface_arch.quant.config.recipe",
    "State": "quantface_arch.quant.nn.layers",
    "balance_stage": "quantface_arch.quant.ptq",
    "branch_stage": "quantface_arch.quant.ptq",
    "calibrating": "quantface_arch.quant.calibration.calibrate",
    "calibration_stage": "quantface_arch.quant.ptq",
    "convert": "quantface_arch.quant.nn.convert",
    "fold_trained": "quantface_arch.quant.finetune.trainable",
    "load_balance": "quantface_arch.quant.checkpoint.balance_file",
    "load_checkpoint": "quantface_arch.quant.checkpoint.save_load",
    "prepare": "quantface_arch.quant.ptq",
    "quant_layers": "quantface_arch.quant.nn.layers",
    "quantize": "quantface_arch.quant.ptq",
    "read_metadata": "quantface_arch.quant.checkpoint.save_load",
    "round_float_parts": "quantface_arch.quant.checkpoint.save_load",
    "save_balance": "quantface_arch.quant.checkpoint.balance_file",
    "save_checkpoint": "quantface_arch.quant.checkpoint.save_load",
    "trainable": "quantface_arch.quant.finetune.trainable",
}

__getattr__ = lazy_names(__name__, _HOMES)
