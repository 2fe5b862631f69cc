"""Architectures; importing ``registered`` puts them into BasicSR's ARCH_REGISTRY."""

from __future__ import annotations

from quantface_arch.archs.build import build_arch

__all__ = ["build_arch"]
