"""Architectures; importing ``registered`` puts them into BasicSR's ARCH_REGISTRY."""

from __future__ import annotations

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.osdface_arch import OSDFace, OSDFaceOutput
from quantface_arch.archs.quantface_arch import QuantFaceArch

__all__ = ["OSDFace", "OSDFaceOutput", "QuantFaceArch", "build_arch"]
