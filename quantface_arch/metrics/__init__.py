"""Metrics, registered in BasicSR's METRIC_REGISTRY."""

from __future__ import annotations

from quantface_arch.metrics.sharpness import (
    calculate_quantface_edge_psnr,
    calculate_quantface_sharpness,
)

__all__ = ["calculate_quantface_edge_psnr", "calculate_quantface_sharpness"]
