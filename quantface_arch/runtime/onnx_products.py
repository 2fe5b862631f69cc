"""Rewrite the products of an exported ONNX graph so that ONNX Runtime computes them in integers.

ONNX Runtime has no convolution with 8-bit inputs and outputs in floating point, but it has such a
matrix product: it fuses MatMul with the two DequantizeLinear before it. So a convolution becomes
a matrix product of its gathered taps (im2col), in the order (N, H, W, C). The sums of integers are
the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["IntegerProducts"]

ROUNDED = "DequantizeLinear"
INT32 = 6  # ONNX's number of the dtype
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class IntegerProducts:
    """A graph's 2D convolutions and linear layers of quantized inputs as integer products.

    Grouped and other convolutions stay as they are; ONNX Runtime computes them in floating point.

    Args:
        graph: an ``onnx.GraphProto`` whose products have DequantizeLinear before both inputs.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}

    def rewrite(self) -> None:
        """Rewrite the graph in place."""
        for node in self.graph.node:
            rounded, weight = self._quantized_inputs(node)
            if rounded is None:
                self.nodes.append(node)
            elif node.op_type == "Conv":
                self._convolution(node, rounded, weight)
            else:
                self._linear(node, rounded, weight)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.added.values())
        _remove_unused(self.graph)

    def _quantized_inputs(self, node: Any) -> tuple[Any, Any]:
        """Return the DequantizeLinear of a product's input and of its weight, or None twice."""
        if node.op_type not in ("Conv", "MatMul"):
            return None, None
        first, second = (self.producers.get(name) for name in node.input[:2])
        if node.op_type == "MatMul" and second is not None and second.op_type == "Transpose":
            second = self.producers.get(second.input[0])
        if first is None or second is None or {first.op_type, second.op_type} != {ROUNDED}:
            return None, None
        weight = self.stored.get(second.input[0])
        if weight is None or len(weight.dims) != (4 if node.op_type == "Conv" else 2):
            return None, None
        return (None, None) if _attributes(node).get("group", 1) > 1 else (first, second)

    def _linear(self, node: Any, rounded: Any, weight: Any) -> None:
        """Store the weight transposed, so that its DequantizeLinear precedes the product."""
        inputs = self._dequantized(rounded.input[0], rounded)
        matrix = self._weight(weight, self._array(weight.input[0]).T)
        self._add("MatMul", [inputs, matrix], node.output[0])

    def _convolution(self, node: Any, rounded: Any, weight: Any) -> None:
        """Gather the taps of every output, multiply them by the weight, and add the bias."""
        integers, settings = self._array(weight.input[0]), _attributes(node)
        name, (outputs, channels, *kernel) = node.output[0], integers.shape
        x = self._add("Transpose", [rounded.input[0]], f"{name}_last", perm=TO_LAST)
        if any(settings["pads"]):
            top, left, bottom, right = settings["pads"]
            pads = self._constant((0, top, left, 0, 0, bottom, right, 0))
            x = self._add("Pad", [x, pads, self._zero_point(rounded)], f"{name}_padded")
        if (*kernel, *settings["strides"]) != (1, 1, 1, 1):
            x = self._taps(x, name, channels, kernel, settings)
        matrix = integers.transpose(2, 3, 1, 0).reshape(-1, outputs)
        inputs = [self._dequantized(x, rounded), self._weight(weight, matrix)]
        y = self._add("MatMul", inputs, f"{name}_product")
        # The bias is added last: ONNX Runtime would merge MatMul and Add into Gemm, in float32.
        y = self._add("Transpose", [y], f"{name}_first", perm=TO_FIRST)
        bias = self._array(node.input[2]) if len(node.input) == 3 else np.zeros(outputs, np.float32)
        self._add("Add", [y, self._constant(bias.reshape(-1, 1, 1), f"{name}_bias")], name)

    def _taps(
        self, x: str, name: str, channels: int, kernel: list[int], settings: dict[str, Any]
    ) -> str:
        """Gather (N, H, W, C) to (N, Hout, Wout, taps * C)."""
        steps = np.reshape(settings["dilations"], (2, 1))
        rows, columns = (np.indices(kernel).reshape(2, -1) * steps).astype(np.int32)
        shape = self._add("Shape", [x], f"{name}_shape")
        shape = self._add("Cast", [shape], f"{name}_sides", to=INT32)
        width = self._add("Gather", [shape, self._constant(2)], f"{name}_width", axis=0)
        starts = []
        for axis, offsets, stride in zip((1, 2), (rows, columns), settings["strides"], strict=True):
            side = self._add("Gather", [shape, self._constant(axis)], f"{name}_side{axis}", axis=0)
            end = self._add("Sub", [side, self._constant(offsets.max())], f"{name}_end{axis}")
            steps = [self._constant(np.int32(0)), end, self._constant(np.int32(stride))]
            starts.append(self._add("Range", steps, f"{name}_starts{axis}"))
        taps = self._add("Mul", [self._constant(rows), width], f"{name}_down")
        taps = self._add("Add", [taps, self._constant(columns)], f"{name}_taps")
        lines = self._add("Mul", [starts[0], width], f"{name}_lines")
        lines = self._add("Unsqueeze", [lines, self._constant((1, 2))], f"{name}_lines3")
        points = self._add("Unsqueeze", [starts[1], self._constant((1,))], f"{name}_points")
        places = self._add("Add", [points, taps], f"{name}_line")
        places = self._add("Add", [lines, places], f"{name}_places")
        x = self._add("Reshape", [x, self._constant((0, -1, channels))], f"{name}_flat")
        x = self._add("Gather", [x, places], f"{name}_gathered", axis=1)
        return self._add("Reshape", [x, self._constant((0, 0, 0, -1))], f"{name}_columns")

    def _dequantized(self, x: str, rounded: Any) -> str:
        inputs = [x, rounded.input[1], self._zero_point(rounded)]
        return self._add(ROUNDED, inputs, f"{rounded.output[0]}_{len(self.nodes)}")

    def _zero_point(self, rounded: Any) -> str:
        """Return an input's zero point; a signed input is made unsigned, which moves no level."""
        rounding = self.producers[rounded.input[0]]
        zero = self._array(rounded.input[2])
        if zero.dtype == np.int8:
            zero = (zero.astype(np.int64) + 128).astype(np.uint8)
        rounding.input[2] = rounded.input[2] = self._constant(zero)
        return rounding.input[2]

    def _weight(self, weight: Any, matrix: np.ndarray) -> str:
        """Add a weight (inputs, outputs) with its DequantizeLinear."""
        name = f"{weight.output[0]}_matrix"
        inputs = [self._constant(np.ascontiguousarray(matrix), name), weight.input[1]]
        # A layer that is called twice stores its weight once.
        return self._add(ROUNDED, inputs, f"{name}_{len(self.nodes)}", axis=1)

    def _array(self, name: str) -> np.ndarray:
        """Return a constant: an initializer or a Constant, perhaps after Identity and Cast."""
        from onnx import helper, numpy_helper

        for constants in (self.stored, self.added):
            if name in constants:
                return numpy_helper.to_array(constants[name])
        node = self.producers[name]
        if node.op_type == "Constant":
            return numpy_helper.to_array(_attributes(node)["value"])
        array = self._array(node.input[0])
        if node.op_type == "Identity":
            return array
        return array.astype(helper.tensor_dtype_to_np_dtype(_attributes(node)["to"]))

    def _constant(self, value: Any, name: str | None = None) -> str:
        """Store a constant, equal ones once, and return its name."""
        from onnx import numpy_helper

        array = np.asarray(value)
        name = name or f"constant_{array.dtype}_{array.shape}_{array.ravel().tolist()}"
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(array, name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _remove_unused(graph: Any) -> None:
    """Remove the nodes and initializers that no output needs."""
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed.update(_names(node))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field, values in ((graph.node, kept[::-1]), (graph.initializer, initializers)):
        del field[:]
        field.extend(values)


def _names(node: Any) -> set[str]:
    """Return the names that a node reads, in its branches too."""
    names = set(node.input)
    for value in _attributes(node).values():
        if hasattr(value, "node"):
            names.update(output.name for output in value.output)
            names.update(name for inner in value.node for name in _names(inner))
    return names
