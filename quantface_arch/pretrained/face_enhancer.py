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
from quantface_arch.faces.color import PATCHES, STRUCTURE_SHARE, STRUCTURE_SIGMA, default_color_fix
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
# OpenCV cuts the filters of float images off at this many standard deviations.
_CUT_OFF = 4


class FaceEnhancer(Part):
    """A restorer with its own colour fix, because programs paste the output as it is.

    The fix is the default of ``FaceRestorer`` for this network: ``structure`` or ``none``.
    """

    patch_filter: Tensor
    pixel_filter: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, "forward")
        self.fixed = default_color_fix(traits_of(network).arch_options) == "structure"
        self.register_buffer("patch_filter", _gaussian(1.0))
        self.register_buffer("pixel_filter", _gaussian(STRUCTURE_SIGMA))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Restore faces (N, 3, 512, 512) in [-1, 1]."""
        restored = super().forward(*inputs)
        return self._fix(restored.clamp(*_RANGE), *inputs) if self.fixed else restored

    def _fix(self, restored: Tensor, original: Tensor) -> Tensor:
        """Do what ``fix_color`` does by ``structure``, whose operators are OpenCV's."""
        patches = F.avg_pool2d(original - restored, FACE_SIZE // PATCHES)
        patches = _blur(patches, self.patch_filter)
        restored = restored + F.interpolate(patches, (FACE_SIZE, FACE_SIZE), mode="bicubic")
        return restored + STRUCTURE_SHARE * _blur(original - restored, self.pixel_filter)


def _gaussian(sigma: float) -> Tensor:
    """Return the taps of a Gaussian filter (2 R + 1,), whose sum is 1."""
    radius = round(_CUT_OFF * sigma)
    taps = torch.exp(-((torch.arange(-radius, radius + 1.0) / sigma) ** 2) / 2)
    return taps / taps.sum()


def _blur(image: Tensor, taps: Tensor) -> Tensor:
    """Filter images (N, 3, H, W) in both directions; the border is mirrored."""
    image = F.pad(image, (len(taps) // 2,) * 4, mode="reflect")
    rows = F.conv2d(image, taps.view(1, 1, 1, -1).expand(3, -1, -1, -1), groups=3)
    return F.conv2d(rows, taps.view(1, 1, -1, 1).expand(3, -1, -1, -1), groups=3)


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
