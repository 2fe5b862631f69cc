"""A graph that holds for the traced size alone is found and refused."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import quantize, save_checkpoint
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.onnx_file import write_onnx
from quantface_arch.runtime.openvino.trace import trace_checkpoint, write_openvino

ARCH = {"type": "Halves"}


class Halves(nn.Module):
    """A network that treats the halves of an image differently, as some networks do."""

    def __init__(self, as_number: bool) -> None:
        super().__init__()
        self.as_number = as_number
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        middle = int(x.shape[2] / 2) if self.as_number else x.shape[2] // 2
        return torch.cat([2 * y[:, :, :middle], y[:, :, middle:]], 2)


def written(as_number, folder):
    net = Halves(as_number).eval()
    quantize(net, "w8a8", pictures(2), progress=False)
    save_checkpoint(net, folder / "net.safetensors", ARCH)
    return folder / "net.safetensors", lambda _: Halves(as_number), Lowering("faithful")


@pytest.mark.parametrize("write", ["parts", "xml", "onnx"])
@pytest.mark.parametrize("as_number", [False, True])
def test_a_size_that_became_a_number_is_found(tmp_path, write, as_number):
    writers = {
        "parts": lambda *net: trace_checkpoint(*net, tmp_path),
        "xml": lambda *net: write_openvino(*net, tmp_path / "net.xml"),
        "onnx": lambda *net: write_onnx(*net, tmp_path / "net.onnx"),
    }
    net = written(as_number, tmp_path)
    if not as_number:
        writers[write](*net)
        return
    with pytest.raises(QuantFaceError, match=r"Halves\.forward depends on the size .*reference"):
        writers[write](*net)
    assert not (tmp_path / "net.onnx").exists()
