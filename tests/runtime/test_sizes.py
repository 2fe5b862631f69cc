"""A graph that holds for the traced size alone is found, and traced again for other sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_helpers import pictures, sqnr
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import load_checkpoint, quantize, save_checkpoint
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.onnx_file import write_onnx
from quantface_arch.runtime.openvino import load, one_size
from quantface_arch.runtime.openvino import network as network_module
from quantface_arch.runtime.openvino.one_size import OneSizePart
from quantface_arch.runtime.openvino.trace import trace_part, write_openvino

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


@pytest.mark.parametrize("write", ["xml", "onnx"])
@pytest.mark.parametrize("as_number", [False, True])
def test_a_size_that_became_a_number_is_found(tmp_path, write, as_number):
    writers = {
        "xml": lambda *net: write_openvino(*net, tmp_path / "net.xml"),
        "onnx": lambda *net: write_onnx(*net, tmp_path / "net.onnx"),
    }
    net = written(as_number, tmp_path)
    if not as_number:
        writers[write](*net)
        return
    with pytest.raises(QuantFaceError, match=r"Halves\.forward depends on the size .*itself"):
        writers[write](*net)
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.slow
def test_a_graph_of_one_size_is_traced_for_each_size_once(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    path, build, _ = written(True, tmp_path)
    reference, sizes = load_checkpoint(path, build), [(1, 16, 24), (2, 40, 16), (1, 24, 24)]
    made = []
    for _ in range(2):
        network = load(path, build, "faithful")
        assert isinstance(vars(network)["forward"].part, OneSizePart)
        for count, height, width in sizes * 2:
            x = torch.rand(count, 3, height, width)
            with torch.no_grad():
                assert sqnr(reference(x), network(x)) > 60
        # A second process finds the graphs on disk.
        made.append(len(list((tmp_path / "cache/one_size").glob("*/*"))))
        monkeypatch.setattr(network_module, "trace_part", lambda *_: pytest.fail("traced again"))
    assert made == [len(sizes)] * 2


def test_the_graph_of_a_size_is_wrong_at_others(tmp_path):
    """Without this, the test above would not show that sizes are traced apart."""
    net = written(True, tmp_path)
    trace_part(*net, "forward", (np.zeros((1, 3, 16, 16), np.float32),), tmp_path)
    part, x = one_size.CompiledPart(tmp_path / "forward.xml", True), torch.rand(1, 3, 40, 16)
    assert sqnr(load_checkpoint(*net[:2])(x), torch.from_numpy(part(x.numpy()))) < 20
