"""Losses, registered in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

from quantface_arch.losses.image_losses import (
    QuantFaceColorLoss,
    QuantFaceEdgeLoss,
    QuantFaceTextureLoss,
)

__all__ = ["QuantFaceColorLoss", "QuantFaceEdgeLoss", "QuantFaceTextureLoss"]
