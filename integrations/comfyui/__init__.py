"""Nodes for ComfyUI: link or copy this folder into ComfyUI's ``custom_nodes``."""

from __future__ import annotations

from .nodes import LoadRestorer, RestoreFaces

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {
    "QuantFaceLoadRestorer": LoadRestorer,
    "QuantFaceRestoreFaces": RestoreFaces,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "QuantFaceLoadRestorer": "Load Face Restorer (QuantFace)",
    "QuantFaceRestoreFaces": "Restore Faces (QuantFace)",
}
