"""Convolutions after a nearest-neighbour doubling, computed on the image before the doubling.

Each pixel of the large image sees 2×2 pixels of the small one, with weights that are sums of the
3×3 taps. That takes 4/9 of the multiplications. The four kinds of pixels together form a transposed
convolution with 4×4 taps and stride 2.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops

from quantface_arch.quant.config.specs import MAX_BITS
from quantface_arch.quant.ops.quantizer import scale_and_zero_point
from quantface_arch.runtime.openvino.compiled import WEIGHT

__all__ = ["merge_upsampling", "transposed_taps"]

# Merging pays from this number of input channels on. OpenVINO writes the results of integer
# transposed convolutions in float32, which takes twice the memory.
WIDE = 512
# A doubling by nearest neighbours has these attributes.
DOUBLING = {
    "mode": "nearest",
    "shape_calculation_mode": "scales",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
    "pads_begin": [0, 0, 0, 0],
    "pads_end": [0, 0, 0, 0],
}
PLAIN = {
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads_begin": [1, 1],
    "pads_end": [1, 1],
    "auto_pad": "explicit",
}


def transposed_taps(weight: NDArray[Any]) -> NDArray[Any]:
    """Return the transposed convolution that doubles and convolves at once.

    Args:
        weight: (Cout, Cin, 3, 3), the weight of the convolution after the doubling.

    Returns:
        (Cin, Cout, 4, 4).
    """
    outputs, inputs = weight.shape[:2]
    taps = np.zeros((inputs, outputs, 4, 4), weight.dtype)
    turned = weight[:, :, ::-1, ::-1].swapaxes(0, 1)
    for i in range(2):
        for j in range(2):
            taps[:, :, i : i + 3, j : j + 3] += turned
    return taps


def merge_upsampling(model: openvino.Model, layers: Container[str], largest: int) -> None:
    """Replace integer convolutions that follow a doubling, in place.

    Sums of taps beyond ``largest`` are rounded again with a larger scale. The input is rounded
    again with a scale for which zero is in the middle, because OpenVINO has integer transposed
    convolutions only for that.

    Args:
        layers: the names of the layers that may round differently from the reference.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution" and _has(node, PLAIN):
            rounding, weight = (node.input_value(place).get_node() for place in range(2))
            if rounding.get_type_name() == "FakeQuantize" and _doubles(rounding):
                _merge(node, rounding, weight, layers, largest)


def _merge(
    node: openvino.Node,
    rounding: openvino.Node,
    weight: openvino.Node,
    layers: Container[str],
    largest: int,
) -> None:
    """Replace one convolution, if it qualifies."""
    kinds = [value.get_node().get_type_name() for value in weight.input_values()]
    if weight.get_type_name() != "Multiply" or kinds != ["Convert", "Constant"]:
        return
    constant = weight.input_value(0).get_node().input_value(0).get_node()
    name = WEIGHT.fullmatch(constant.get_friendly_name())
    inputs, kernel = constant.data.shape[1], constant.data.shape[2:]
    if name is None or name[1] not in layers or inputs < WIDE or kernel != (3, 3):
        return
    taps = transposed_taps(constant.data.astype(np.int32))
    # The scale of each output channel grows by this factor.
    growth = np.maximum(np.abs(taps).max((0, 2, 3), keepdims=True) / largest, 1).astype(np.float32)
    merged = ops.constant(np.rint(taps / growth).astype(np.int8))
    merged.set_friendly_name(constant.get_friendly_name())
    scale = weight.input_value(1).get_node().data.reshape(1, -1, 1, 1) * growth
    product = ops.convolution_backprop_data(
        _centred(rounding, rounding.input_value(0).get_node().input_value(0)),
        ops.multiply(ops.convert(merged, "f32"), ops.constant(scale)),
        strides=[2, 2],
        pads_begin=[1, 1],
        pads_end=[1, 1],
    )
    product.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(product.output(0))


def _centred(rounding: openvino.Node, small: openvino.Output) -> openvino.Node:
    """Return a symmetric rounding of the small image whose range covers the current one."""
    low, high = (float(rounding.input_value(place).get_node().data.min()) for place in (1, 2))
    scale = float(scale_and_zero_point(torch.tensor(low), torch.tensor(high), MAX_BITS, True)[0])
    ends = [np.float32(level * scale) for level in (-128, 127)] * 2
    return ops.fake_quantize(small, *ends, 256)


def _has(node: openvino.Node, wanted: dict[str, Any]) -> bool:
    """Return whether a node has these attributes."""
    found = node.get_attributes()
    return all(found[key] == value for key, value in wanted.items())


def _doubles(rounding: openvino.Node) -> bool:
    """Return whether the rounded value is an image (N, C, H, W) doubled by nearest neighbours."""
    node = rounding.input_value(0).get_node()
    if node.get_type_name() != "Interpolate" or not _has(node, DOUBLING):
        return False
    factors, axes = (node.input_value(place).get_node() for place in (1, 2))
    constant = factors.get_type_name() == axes.get_type_name() == "Constant"
    return constant and list(factors.data) == [2, 2] and list(axes.data) == [2, 3]
