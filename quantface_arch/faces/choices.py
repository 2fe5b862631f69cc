"""What users choose from by name, for command lines that must start fast."""

from __future__ import annotations

__all__ = ["ALIASES", "AUTO_STRENGTH", "COLOR_FIXES", "DETECTORS"]

DETECTORS = ("auto", "yunet", "retinaface_mobile0.25", "retinaface_resnet50")
# Each of these detectors was removed; the one that it maps to replaces it.
ALIASES = {"haar": "yunet"}
# See ``color.fix_color``.
COLOR_FIXES = ("none", "structure", "lowres", "wavelet", "adain")
# Each face is restored as strongly as it needs, see ``degraded.needed_strength``.
AUTO_STRENGTH = "auto"
