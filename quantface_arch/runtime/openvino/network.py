"""A torch network whose parts OpenVINO executes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from quantface_arch.quant.checkpoint.builder import Build, Builder
from quantface_arch.quant.checkpoint.save_load import build_skeleton
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.openvino.compiled_parts import Part, Tracer, load_parts
from quantface_arch.runtime.openvino.trace import trace_checkpoint, trace_part

__all__ = ["load_network", "tracer"]


def tracer(path: Path, build: Build, mode: str) -> Tracer:
    """Return what writes the graphs of a checkpoint; see ``load_network``."""
    return Tracer(
        lambda largest, folder: trace_checkpoint(path, build, Lowering(mode, largest), folder),
        lambda largest, name, inputs, folder: trace_part(
            path, build, Lowering(mode, largest), name, inputs, folder
        ),
    )


def load_network(path: Path, builder: Builder, mode: str) -> nn.Module:
    """Load a network; see ``quantface_arch.runtime.openvino.load``."""
    network = build_skeleton(path, builder.shell)
    compiled = load_parts(path, mode, lambda: tracer(path, builder.full, mode))
    # The compiled parts hold the weights.
    for module in network.modules():
        module._parameters.clear()
        module._buffers.clear()
    for name, part in compiled.parts.items():
        # An instance attribute takes precedence over the method of the class.
        vars(network)[name] = OnTensors(part)
    return network


class OnTensors:
    """A compiled part as a function of CPU tensors."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the part; the results are float32."""
        results = self.part(*(x.detach().float().numpy() for x in inputs))
        if isinstance(results, tuple):
            return tuple(map(torch.from_numpy, results))
        return torch.from_numpy(results)
