"""Write a checkpoint as one ONNX file with its integers, for ONNX Runtime and tools built on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# torch exports both functions, but its ``__all__`` leaves them out as deprecated.
from torch.onnx import (
    register_custom_op_symbolic,  # pyright: ignore[reportPrivateImportUsage]
    symbolic_helper,
    unregister_custom_op_symbolic,  # pyright: ignore[reportPrivateImportUsage]
)

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.onnx_products import IntegerProducts
from quantface_arch.runtime.parts import Whole, example_image, lowered_network, other_image
from quantface_arch.runtime.sizes import traced
from quantface_arch.utils.files import atomic_path

__all__ = ["ANY_SIZE", "Ports", "missing", "save_graph", "write_onnx"]

# Opset 18 is the first whose ScatterElements supports ``reduction="min"``, which code selection
# needs.
OPSET = 18


@dataclass(frozen=True)
class Ports:
    """The input and the output of a file, both images.

    Attributes:
        input, output: their names.
        free: the axes that may have any length, with a name for each. All others have the lengths
            of the image on which the network is traced.
        shape: the shape of the output, None if it has free axes. The exporter does not infer it.
    """

    input: str = "degraded"
    output: str = "restored"
    free: Mapping[int, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


ANY_SIZE = Ports(free={0: "batch", 2: "height", 3: "width"})


def missing() -> str | None:
    """Return None if the onnx package is installed, else an install hint."""
    return None if find_spec("onnx") else "pip install onnx onnxruntime"


@torch.no_grad()
def write_onnx(path: Path, build: Build, lowering: Lowering, target: Path) -> None:
    """Write a checkpoint's network as ONNX, with input ``degraded`` and output ``restored``.

    Both are images (N, 3, H, W), where H and W are multiples of the network's ``side_step``. The
    program that runs the file refuses other sizes, as the reference does. Weights are stored as
    int8 before DequantizeLinear. The inputs of products pass through QuantizeLinear and
    DequantizeLinear. Convolutions are matrix products, see ``IntegerProducts``.

    Args:
        build: see ``load_checkpoint``.

    Raises:
        QuantFaceError: see ``lowered_network`` and ``traced``; or ONNX lacks an operator.
    """
    network = lowered_network(path, build, lowering)
    whole, image = Whole(network), example_image(network)
    traced(whole, (image,), (other_image(network),), path)
    with atomic_path(target) as temporary:
        save_graph(whole, image, ANY_SIZE, path, temporary)


@torch.no_grad()
def save_graph(network: nn.Module, image: Tensor, ports: Ports, path: Path, target: Path) -> None:
    """Write a lowered network as ONNX, with its integers.

    Args:
        network: maps images (N, 3, H, W) to images, and can be traced.
        image: an image that it takes, on which it is traced.
        path: the checkpoint's path, for the message.

    Raises:
        QuantFaceError: ONNX lacks an operator.
    """
    import onnx

    with _stable_sorting():
        _export(network, image, ports, path, target)
    model = onnx.load(target)
    _dequantize_weights(model.graph)
    IntegerProducts(model.graph).rewrite()
    if ports.shape is not None:
        lengths = model.graph.output[0].type.tensor_type.shape.dim
        for axis, length in zip(lengths, ports.shape, strict=True):
            axis.dim_value = length
    onnx.save(model, target)


def _export(network: nn.Module, image: Tensor, ports: Ports, path: Path, target: Path) -> None:
    """Write a network as torch exports it.

    Raises:
        QuantFaceError: ONNX lacks an operator.
    """
    with warnings.catch_warnings():
        # torch warns of sizes that become constants; ``traced`` finds those that matter.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (image,),
                str(target),
                dynamo=False,
                opset_version=OPSET,
                # Constant folding would turn the integers into floating point.
                do_constant_folding=False,
                input_names=[ports.input],
                output_names=[ports.output],
                dynamic_axes={
                    name: dict(ports.free) for name in (ports.input, ports.output) if ports.free
                },
            )
        except torch.onnx.OnnxExporterError as error:
            detail = str(error).strip().splitlines()[0]
            raise QuantFaceError(f"{path}: cannot be written as ONNX ({detail})") from error


def _dequantize_weights(graph: Any) -> None:
    """Turn every cast and scaling of an int8 weight into a DequantizeLinear by rows."""
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    done = set()
    for node in graph.node:
        if node.op_type != "Mul" or node.input[0] not in casts or node.input[1] not in stored:
            continue
        cast, scale = casts[node.input[0]], stored[node.input[1]]
        weight = stored.get(cast.input[0])
        if weight is None or weight.data_type != weight.INT8:
            continue
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).ravel(), scale.name))
        node.op_type, node.input[0] = "DequantizeLinear", weight.name
        node.attribute.append(helper.make_attribute("axis", 0))
        done.add(cast.output[0])
    for name in done:
        graph.node.remove(casts[name])


@contextmanager
def _stable_sorting() -> Iterator[None]:
    """Teach the exporter stable sorts: TopK returns the first of equal values first."""

    def ascending(graph: Any, x: Any, dim: int) -> Any:
        axis = graph.op("Constant", value_t=torch.tensor([dim]))
        count = graph.op("Gather", graph.op("Shape", x), axis, axis_i=0)
        return graph.op("TopK", x, count, axis_i=dim, largest_i=0, sorted_i=1, outputs=2)

    @symbolic_helper.parse_args("v", "b", "i", "b")
    def sort(graph: Any, x: Any, stable: bool, dim: int, descending: bool) -> Any:
        return ascending(graph, x, dim)

    @symbolic_helper.parse_args("v", "b", "i", "b")
    def argsort(graph: Any, x: Any, stable: bool, dim: int, descending: bool) -> Any:
        return ascending(graph, x, dim)[1]

    symbols = {"aten::sort": sort, "aten::argsort": argsort}
    for name, symbol in symbols.items():
        register_custom_op_symbolic(name, symbol, OPSET)
    try:
        yield
    finally:
        for name in symbols:
            unregister_custom_op_symbolic(name, OPSET)
