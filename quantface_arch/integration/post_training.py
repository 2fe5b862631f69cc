"""Quantize a restorer on faces, without training, into a checkpoint that is complete or absent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.data.calibration_faces import Faces
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import (
    CalibrationData,
    CalibrationStore,
    ConversionReport,
    Recipe,
    quantize,
    save_checkpoint,
)
from quantface_arch.quant.calibration.store import digest
from quantface_arch.quant.checkpoint.check_saved import check_saved
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import atomic_path

__all__ = ["PostTraining"]


@dataclass(frozen=True)
class PostTraining:
    """How a restorer is quantized after training.

    Attributes:
        recipe: what is quantized and how. The layers with 8 bits are those of the network.
        bits: bit widths by layer in place of the recipe's, from a bit map.
        size: side of the faces in pixels.
        batch_size: faces that go through the network at once.
        device: torch device to calibrate on.
    """

    recipe: Recipe
    bits: dict[str, tuple[int, int]] | None = None
    size: int = 512
    batch_size: int = 4
    device: str = "cpu"

    def run(
        self, model: nn.Module, faces: Faces, output: Path, shard: Shard | None = None
    ) -> ConversionReport:
        """Quantize ``model`` in place and write it to ``output``, a ``.safetensors`` file.

        Statistics are kept beside ``output`` until it is written, so that a killed run goes on. The
        first of several processes writes the file.

        Args:
            faces: degraded faces; they get the range of the model's input.
            shard: this process among those that share the faces out.

        Raises:
            QuantFaceError: the model cannot be quantized, or the file that was written does not
                give the same image when it is loaded.
        """
        shard, arch = shard or Shard(), traits_of(model).arch_options
        if arch is None:
            raise QuantFaceError("the model does not say how it is built: set arch_options")
        faces.input_range = traits_of(model).input_range
        recipe = replace(self.recipe, eight_bit=traits_of(model).eight_bit_patterns)
        store = CalibrationStore(
            output.with_name(f"{output.name.removesuffix('.safetensors')}.calib.safetensors"),
            self._fingerprint(model, recipe, faces),
        )
        data = CalibrationData(faces, self.batch_size, shard.is_first, store, shard)
        report = quantize(model, recipe, data, bits=self.bits)
        if shard.is_first:
            extra = {"calibration": {"pictures": len(faces), "size": self.size}}
            with atomic_path(output) as temporary:
                save_checkpoint(model, temporary, arch, extra)
                check_saved(model, temporary, build_arch, faces[0][None].to(self.device))
            store.remove()
        return report

    def _fingerprint(self, model: nn.Module, recipe: Recipe, faces: Faces) -> str:
        """Hash everything that the calibration statistics depend on."""
        settings = json.dumps([recipe.to_dict(), self.bits, self.size, self.batch_size])
        state = hashlib.sha256((digest(model) + settings).encode())
        for face in faces.paths:
            state.update(hashlib.sha256(face.read_bytes()).digest())
        return state.hexdigest()
