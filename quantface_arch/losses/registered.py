"""Importing this module registers all losses in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

from quantface_arch.losses.feature_losses import QuantFaceFeatureLoss, QuantFaceStructureLoss
from quantface_arch.losses.image_losses import (
    QuantFaceColorLoss,
    QuantFaceEdgeLoss,
    QuantFaceTextureLoss,
)
from quantface_arch.losses.network_losses import QuantFaceIdentityLoss, QuantFaceLPIPSLoss

__all__ = [
    "QuantFaceColorLoss",
    "QuantFaceEdgeLoss",
    "QuantFaceFeatureLoss",
    "QuantFaceIdentityLoss",
    "QuantFaceLPIPSLoss",
    "QuantFaceStructureLoss",
    "QuantFaceTextureLoss",
]
