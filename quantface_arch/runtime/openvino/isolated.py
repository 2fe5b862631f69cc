"""A single lowered layer, timed by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from quantface_arch.runtime.lowering import LoweredLayer, work
from quantface_arch.runtime.openvino.blobs import core
from quantface_arch.runtime.openvino.compiled import compile_options
from quantface_arch.runtime.openvino.trace import converted, is_exact
from quantface_arch.runtime.parts import Part
from quantface_arch.runtime.timing import LayerTimer

__all__ = ["layer_timer"]

# A network has most of these at the ends of a layer only if the layer is alone.
BORDERS = ("Reorder", "Transpose")


def layer_timer() -> LayerTimer:
    """Return how OpenVINO times a layer: the sum of its operators without changes of layout."""
    processor = core().get_property("CPU", "FULL_DEVICE_NAME")
    return LayerTimer((openvino.get_version(), processor), _isolated, work)


@torch.no_grad()
def _isolated(layer: LoweredLayer, x: Tensor) -> Callable[[], float]:
    name = "layer"
    model = converted(Part(nn.Sequential(layer), "forward"), (x,), None, Path(name))
    model.reshape({0: list(x.shape)})
    options: dict[str, Any] = {**compile_options(is_exact({name: layer})), "PERF_COUNT": True}
    request = core().compile_model(model, "CPU", options).create_infer_request()
    inputs = [x.numpy()]

    def run() -> float:
        request.infer(inputs, share_inputs=True, share_outputs=True)
        spent = (
            it.real_time.total_seconds()
            for it in request.profiling_info
            if it.node_type not in BORDERS
        )
        return sum(spent) * 1e3

    return run
