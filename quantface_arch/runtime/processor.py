"""What the processor's integer products demand of weights."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["FULL", "SPARE", "has_vnni"]

# These are the largest integers of a weight. SPARE leaves one bit unused, for processors that sum
# pairs of products in 16 bits, where sums of 8-bit weights would overflow.
FULL, SPARE = 127, 63


def has_vnni() -> bool:
    """Return whether the CPU sums int8 products in 32 bits; True if this cannot be determined."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
