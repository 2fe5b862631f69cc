"""MobileFaceNet, a small face embedding network, filled from its published ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.identity import MEAN, STD

__all__ = ["MobileFaceNet", "load_mobilefacenet"]

# Each of the fifteen inverted residual blocks has output channels, hidden channels and a stride
# (Chen et al., "MobileFaceNets", CCBR 2018, table 1, with one more block at the start).
BLOCKS = (
    *((64, 128, stride) for stride in (2, 1, 1, 1, 1)),
    (128, 256, 2),
    *((128, 256, 1) for _ in range(6)),
    (128, 512, 2),
    *((128, 256, 1) for _ in range(2)),
)


class InvertedResidual(nn.Module):
    """A block that expands, filters each channel and projects; it adds an input of equal shape."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, hidden, 1)
        self.filter = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(F.relu6(self.filter(F.relu6(self.expand(x)))))
        return x + h if self.residual else h


class MobileFaceNet(nn.Module):
    """A network that embeds 112×112 faces in 128 dimensions, with batch normalization folded."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.filter = nn.Conv2d(64, 64, 3, 1, 1, groups=64)
        self.mix = nn.Conv2d(64, 64, 1)
        inputs = [64, *(out for out, _, _ in BLOCKS)]
        self.blocks = nn.Sequential(
            *(InvertedResidual(i, *block) for i, block in zip(inputs, BLOCKS, strict=False))
        )
        self.expand = nn.Conv2d(128, 512, 1)
        self.pool = nn.Conv2d(512, 512, 7, groups=512)
        self.project = nn.Conv2d(512, 128, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """Return embeddings of length 1.

        Args:
            faces: float (N, 3, 112, 112), RGB in [-1, 1], in ArcFace's alignment.

        Returns:
            float (N, 128).
        """
        x = ((faces + 1) / 2 - self.mean) / self.std
        x = F.relu(self.mix(F.relu(self.filter(F.relu6(self.stem(x))))))
        x = self.pool(F.relu6(self.expand(self.blocks(x))))
        return F.normalize(self.project(x).flatten(1))


def load_mobilefacenet(path: str | os.PathLike[str]) -> MobileFaceNet:
    """Build the network and fill it from the published ONNX file.

    Args:
        path: ``MobileFaceNet.onnx`` of github foamliu/MobileFaceNet, batch normalization folded.

    Raises:
        QuantFaceError: the file is missing or unreadable, or holds another network.
    """
    import openvino

    if not Path(path).is_file():
        raise QuantFaceError(f"{path}: no such file")
    try:
        graph = openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise QuantFaceError(f"{path}: no readable ONNX file") from error
    # The exporter numbered the folded weights and biases in the order in which they are used.
    constants = {
        int(node.get_friendly_name().removeprefix("onnx::Conv_")): node
        for node in graph.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith("onnx::Conv_")
    }
    tensors = [torch.from_numpy(constants[number].data.copy()) for number in sorted(constants)]
    net = MobileFaceNet()
    wanted = list(net.parameters())
    if [tuple(t.shape) for t in tensors] != [tuple(p.shape) for p in wanted]:
        raise QuantFaceError(
            f"{path}: found {len(tensors)} convolution tensors that do not fit MobileFaceNet, "
            f"{len(wanted)} are wanted"
        )
    for parameter, value in zip(wanted, tensors, strict=True):
        parameter.data.copy_(value)
    return net.eval().requires_grad_(False)
