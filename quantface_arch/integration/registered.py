"""Add this package's architectures to BasicSR's ARCH_REGISTRY."""

from __future__ import annotations

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import ARCH_REGISTRY
from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.integration.quantface_arch import QuantFaceArch

__all__ = ["ARCH_REGISTRY"]

ARCH_REGISTRY.register(OSDFace)
ARCH_REGISTRY.register(QuantFaceArch)
