"""Write restorers as ONNX files for face-enhancer programs, such as FaceFusion.

These programs agree on a convention: the input ``input`` and the output ``output`` are one face
each, float32 (1, 3, 512, 512), RGB in [-1, 1], aligned to the FFHQ frame. FaceFusion also reads a
checksum from a ``.hash`` file beside the ``.onnx`` file.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.faces.color import PATCHES, default_color_fix
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.onnx_file import Ports, save_graph
from quantface_arch.runtime.parts import Part, lowered_network
from quantface_arch.runtime.sizes import traced
from quantface_arch.utils.files import atomic_path

__all__ = ["FaceEnhancer", "write_face_enhancer"]

_SHAPE = (1, 3, FACE_SIZE, FACE_SIZE)
_RANGE = (-1.0, 1.0)
_BLUR_RADIUS = 4


class FaceEnhancer(Part):
    """A restorer with its own colour fix, because programs paste the output as it is.

    The fix is the default of ``FaceRestorer`` for this network: ``lowres`` or ``none``.
    """

    taps: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, "forward")
        self.fixes_tones = default_color_fix(traits_of(network).arch_options) == "lowres"
        taps = torch.exp(-(torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1.0) ** 2) / 2)
        self.register_buffer("taps", taps / taps.sum())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Restore faces (N, 3, 512, 512) in [-1, 1]."""
        restored = super().forward(*inputs)
        return self._with_tones(restored.clamp(*_RANGE), *inputs) if self.fixes_tones else restored

    def _with_tones(self, restored: Tensor, original: Tensor) -> Tensor:
        """Do what ``fix_color`` does by ``lowres``, whose operators are OpenCV's."""
        patches = F.avg_pool2d(original - restored, FACE_SIZE // PATCHES)
        patches = F.pad(patches, (_BLUR_RADIUS,) * 4, mode="reflect")
        blur = torch.outer(self.taps, self.taps).expand(3, 1, -1, -1)
        patches = F.conv2d(patches, blur, groups=3)
        return restored + F.interpolate(patches, (FACE_SIZE, FACE_SIZE), mode="bicubic")


@torch.no_grad()
def write_face_enhancer(path: Path, build: Build, lowering: Lowering, target: Path) -> None:
    """Write a checkpoint's restorer as ONNX by the convention of face-enhancer programs.

    A file of the same name with the suffix ``.hash`` holds the CRC32 of the ONNX file as 8
    lowercase hexadecimal digits, without a line break. Both files are complete before either is
    given its name.

    Args:
        build: see ``load_checkpoint``.

    Raises:
        QuantFaceError: the network restores no faces in [-1, 1] of 512×512 pixels; see also
            ``lowered_network``, ``traced`` and ``save_graph``.
    """
    network = lowered_network(path, build, lowering)
    traits = traits_of(network)
    if traits.input_range != _RANGE:
        low, high = traits.input_range
        raise _refusal(path, network, f"takes images in [{low:g}, {high:g}]")
    enhancer, face = FaceEnhancer(network), torch.zeros(_SHAPE)
    shape = tuple(traced(enhancer, (face,), None, path)(face).shape)
    if shape != _SHAPE:
        raise _refusal(path, network, f"returns {shape}")
    ports = Ports("input", "output", shape=_SHAPE)
    with atomic_path(target.with_suffix(".hash")) as checksum, atomic_path(target) as temporary:
        save_graph(enhancer, face, ports, path, temporary)
        checksum.write_text(f"{zlib.crc32(temporary.read_bytes()):08x}")


def _refusal(path: Path, network: nn.Module, what: str) -> QuantFaceError:
    """Return the error for a network that is no restorer of faces."""
    arch = traits_of(network).arch_options
    return QuantFaceError(
        f"{path}: found {arch.get('id', arch.get('type'))}, which {what}; allowed is a face "
        f"restorer, which maps {_SHAPE} in [-1, 1] to the same shape and range"
    )
