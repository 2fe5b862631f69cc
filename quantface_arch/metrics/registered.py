"""Importing this module registers all metrics in BasicSR's METRIC_REGISTRY."""

from __future__ import annotations

from quantface_arch.metrics.deep import (
    calculate_quantface_clipiqa,
    calculate_quantface_dists,
    calculate_quantface_fid,
    calculate_quantface_lpips,
    calculate_quantface_maniqa,
    calculate_quantface_musiq,
)
from quantface_arch.metrics.face import (
    calculate_quantface_deg,
    calculate_quantface_lmd,
    calculate_quantface_vre,
)
from quantface_arch.metrics.natural import calculate_quantface_niqe
from quantface_arch.metrics.sharpness import (
    calculate_quantface_edge_psnr,
    calculate_quantface_sharpness,
)
from quantface_arch.metrics.structural import (
    calculate_quantface_haarpsi,
    calculate_quantface_ms_ssim,
)

__all__ = [
    "calculate_quantface_clipiqa",
    "calculate_quantface_deg",
    "calculate_quantface_dists",
    "calculate_quantface_edge_psnr",
    "calculate_quantface_fid",
    "calculate_quantface_haarpsi",
    "calculate_quantface_lmd",
    "calculate_quantface_lpips",
    "calculate_quantface_maniqa",
    "calculate_quantface_ms_ssim",
    "calculate_quantface_musiq",
    "calculate_quantface_niqe",
    "calculate_quantface_sharpness",
    "calculate_quantface_vre",
]
