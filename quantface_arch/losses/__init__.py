"""Losses, registered in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

from quantface_arch.losses.image_losses import QuantFaceEdgeLoss, QuantFaceTextureLoss

__all__ = ["QuantFaceEdgeLoss", "QuantFaceTextureLoss"]
