"""Group norms that keep images channels-last in memory, as integer convolutions write them.

OpenVINO computes a group norm on rows that hold all values of a group. It reorders the image for
that, before and after. Here the sums of every channel are taken without a reorder, and the sums of
a group follow from them. What remains is a factor and an offset per channel. They take one pass
together with the activation function and the rounding that follow.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

__all__ = ["keep_in_float32", "spread_group_norms"]

# This marks the names of nodes that must be computed in float32 whatever the precision of the rest,
# because a variance is a small difference of large sums.
FLOAT32 = "/float32/"
LAYER = re.compile(rf'<layer [^>]*name="[^"]*{FLOAT32}[^"]*"[^>]*>(?:\s*<data [^>]*/>)?')
# Only OpenVINO's files can express this. The Python interface has no such attribute.
PRECISE = '<rt_info><attribute name="precise" version="0" /></rt_info>'


def spread_group_norms(model: openvino.Model) -> None:
    """Replace group norms of images (N, C, H, W), in place; see ``keep_in_float32``."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupNormalization":
            x, gamma = (node.get_input_partial_shape(place) for place in range(2))
            if x.rank.get_length() == 4 and gamma.is_static:
                _spread(node)


def keep_in_float32(path: Path) -> None:
    """Mark the group norms' statistics in a written ``.xml`` to be computed in float32."""
    text = path.read_text(encoding="utf-8")
    path.write_text(LAYER.sub(lambda found: found[0] + PRECISE, text), encoding="utf-8")


def _spread(node: openvino.Node) -> None:
    """Replace one group norm."""
    name, attributes = node.get_friendly_name(), node.get_attributes()
    groups, epsilon = attributes["num_groups"], np.float32(attributes["epsilon"])
    x, *affine = (node.input_value(place) for place in range(3))
    channels = affine[0].get_shape()[0]
    by_group = [groups, channels // groups]
    gamma, beta = (ops.reshape(found, [1, *by_group], False) for found in affine)
    # The statistics of channels are (N, C, 1, 1), those of groups are (N, groups, 1).
    means, roots = ops.reduce_mean(x, [2, 3], True), ops.reduce_l2(x, [2, 3], True)
    mean = ops.reduce_mean(ops.reshape(means, [0, *by_group], True), [2], True)
    root = ops.reduce_l2(ops.reshape(roots, [0, *by_group], True), [2], True)
    # Differences are written as sums. OpenVINO would rewrite a difference and lose the nodes'
    # precision.
    opposite = ops.multiply(mean, np.float32(-1))
    square = ops.multiply(ops.multiply(root, root), _inverse_count(x, by_group[1]))
    variance = ops.relu(ops.add(square, ops.multiply(mean, opposite)))
    factor = ops.multiply(gamma, ops.power(ops.add(variance, epsilon), np.float32(-0.5)))
    offset = ops.add(beta, ops.multiply(factor, opposite))
    ends = {end.get_friendly_name() for end in (x.get_node(), means, roots)}
    factors, offsets = (ops.reshape(y, [0, channels, 1, 1], True) for y in (factor, offset))
    for found in (factors, offsets):
        _name(found, f"{name}{FLOAT32}", ends)
    spread = ops.add(ops.multiply(x, factors), offsets)
    spread.set_friendly_name(name)
    node.output(0).replace(spread.output(0))


def _inverse_count(x: openvino.Output, channels: int) -> openvino.Node:
    """Return 1 / (values in ``channels`` channels), a constant once the image's size is known."""
    size = ops.convert(ops.gather(ops.shape_of(x), [2, 3], 0), "f32")
    count = ops.multiply(ops.reduce_prod(size, [0], False), np.float32(channels))
    return ops.power(count, np.float32(-1))


def _name(node: openvino.Node, prefix: str, ends: Container[str]) -> None:
    """Prefix the names of a node and of all nodes that it is computed from, back to ``ends``."""
    name = node.get_friendly_name()
    if name in ends or name.startswith(prefix) or node.get_type_name() == "Constant":
        return
    node.set_friendly_name(f"{prefix}{name}")
    for value in node.input_values():
        _name(value.get_node(), prefix, ends)
