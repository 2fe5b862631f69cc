"""Training and testing models, registered in BasicSR's MODEL_REGISTRY."""

from __future__ import annotations

from quantface_arch.models.osdface_model import OSDFaceModel
from quantface_arch.models.quantface_model import QuantFaceModel
from quantface_arch.models.tiny_decoder_model import TinyDecoderModel

__all__ = ["OSDFaceModel", "QuantFaceModel", "TinyDecoderModel"]
