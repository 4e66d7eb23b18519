"""An ONNX graph read for its quantization: which pairs stand where, with which scales, zero points and codes."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PAIR = (QUANTIZE, DEQUANTIZE)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # (input, weights, bias)
MOVES = ("Reshape", "Transpose", "Flatten", "Slice", "Squeeze", "Unsqueeze", "Split", "Identity", "Cast", "Pad")
SCALE, ZERO_POINT = 1, 2  # places among the inputs of a quantize or dequantize


@dataclass
class QuantizedGraph:
    """The nodes of a graph with who makes and takes their tensors; a graph within sees the constants around it."""

    nodes: list[NodeProto]
    outputs: set[str]
    constants: dict[str, TensorProto]
    makers: dict[str, NodeProto] = field(default_factory=dict)
    takers: dict[str, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, graph: GraphProto, around: dict[str, TensorProto] | None = None) -> "QuantizedGraph":
        """Read `graph`; `around` are the constants of the graph that it is in."""
        constants = dict(around or {}) | {tensor.name: tensor for tensor in graph.initializer}
        result = cls(list(graph.node), {each.name for each in graph.output}, constants)
        for node in graph.node:
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                constants[node.output[0]] = value
            result.makers |= dict.fromkeys(node.output, node)
            for name in dict.fromkeys(node.input):
                result.takers[name].append(node)
        return result

    def maker(self, node: NodeProto, place: int) -> NodeProto | None:
        """What computes an input of `node`; None for one that is given, stored or left out."""
        return self.makers.get(node.input[place]) if place < len(node.input) else None

    def is_dequantized(self, node: NodeProto, place: int) -> bool:
        """Whether an input of `node` is what a dequantize computes."""
        maker = self.maker(node, place)
        return maker is not None and maker.op_type == DEQUANTIZE

    def dequantize_of(self, node: NodeProto, place: int) -> NodeProto | None:
        """The dequantize that an input of `node` comes from, through moves of values."""
        maker = self.maker(node, place)
        while maker is not None and maker.op_type in MOVES:
            maker = self.maker(maker, 0)
        return maker if maker is not None and maker.op_type == DEQUANTIZE else None

    def axis(self, pair: NodeProto) -> int:
        """The axis of the scales of a quantize or dequantize of stored numbers, 0 or more."""
        axis, first = attribute(pair, "axis", 1), self.source(pair) or pair
        values = self.constant(first, 0)
        assert values is not None
        return axis % max(values.ndim, 1)

    def constant(self, node: NodeProto, place: int) -> np.ndarray | None:
        """The stored numbers of an input of `node`; None where it has no such input, or computes it."""
        tensor = self.constants.get(node.input[place]) if place < len(node.input) else None
        return None if tensor is None else numpy_helper.to_array(tensor)

    def stored_type(self, node: NodeProto, place: int) -> int | None:
        """The type, of TensorProto, of a stored input of `node`."""
        tensor = self.constants.get(node.input[place]) if place < len(node.input) else None
        return None if tensor is None else tensor.data_type

    def code_type(self, pair: NodeProto) -> int | None:
        """The type of the codes of a quantize or dequantize as the file says it; None where it does not."""
        if (found := self.stored_type(pair, ZERO_POINT)) is not None:
            return found
        if pair.op_type == DEQUANTIZE and (found := self.stored_type(pair, 0)) is not None:
            return found
        return attribute(pair, "output_dtype") or None

    def computes_on_codes(self, node: NodeProto) -> bool:
        """Whether ONNX Runtime makes one int8 kernel of a convolution or matrix product and the pairs around it.

        A ReLU before the quantize is no more than its first code, which ONNX Runtime sees.
        """
        users = self.takers[node.output[0]]
        if len(users) == 1 and users[0].op_type == "Relu":
            users = self.takers[users[0].output[0]]
        around = [self.maker(node, place) for place in (0, 1)]
        return (
            node.op_type in ("Conv", "Gemm")
            and all(pair is not None and pair.op_type == DEQUANTIZE for pair in around)
            and [user.op_type for user in users] == [QUANTIZE]
        )

    def has_float_bias(self, node: NodeProto) -> bool:
        """Whether such a node has a bias that is stored in float."""
        return self.computes_on_codes(node) and self.stored_type(node, 2) == TensorProto.FLOAT

    def source(self, dequantize: NodeProto) -> NodeProto | None:
        """The quantize of a pair."""
        maker = self.maker(dequantize, 0)
        return maker if maker is not None and maker.op_type == QUANTIZE else None

    def holds_constants(self, pair: NodeProto) -> bool:
        """Whether a quantize or dequantize is of stored numbers, as weights are, and not of an image's."""
        first = self.source(pair) or pair if pair.op_type == DEQUANTIZE else pair
        return first.input[0] in self.constants


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default`."""
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def label(node: NodeProto) -> str:
    """How a node is named to a user."""
    return f"{node.op_type} {node.name or ', '.join(node.output)}"


def graphs_of(model: onnx.ModelProto) -> Iterator[QuantizedGraph]:
    """The graph of a file, and those of the branches and loops in it."""
    yield from _with_inner(model.graph, {})


def _with_inner(graph: GraphProto, around: dict[str, TensorProto]) -> Iterator[QuantizedGraph]:
    found = QuantizedGraph.of(graph, around)
    yield found
    for each in (each for node in graph.node for each in node.attribute):
        if each.type == AttributeProto.GRAPH:
            yield from _with_inner(each.g, found.constants)
        for inner in each.graphs:
            yield from _with_inner(inner, found.constants)
