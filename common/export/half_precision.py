"""What of an INT8 ONNX file is not in int8, in FP16."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from common.export.onnx_passes import replace_nodes

IN_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}  # operator -> inputs that ONNX wants in float32


def to_half(proto: onnx.ModelProto) -> None:
    """Compute in FP16 what is computed in float32, in place; inputs and outputs stay float32.

    Codes of weights stay what they were: a float16 is nearer to its step than half of the next.

    Raises:
        ValueError: a stored number that is beyond the range of FP16.
    """
    graph = proto.graph
    kept = {
        node.input[place] for node in graph.node for place in IN_FLOAT.get(node.op_type, ()) if place < len(node.input)
    }
    for tensor in graph.initializer:
        if tensor.name not in kept:
            _halve(tensor)
    for node in graph.node:
        if not kept.intersection(node.output):
            _halve_attributes(node)
    names = {each.name: f"{each.name}_half" for each in (*graph.input, *graph.output) if _is_float(each)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    nodes = [_cast(each.name, names[each.name], TensorProto.FLOAT16) for each in graph.input if _is_float(each)]
    nodes += graph.node
    nodes += [_cast(names[each.name], each.name, TensorProto.FLOAT) for each in graph.output if _is_float(each)]
    replace_nodes(proto, nodes)


def _is_float(port: onnx.ValueInfoProto) -> bool:
    return port.type.tensor_type.elem_type == TensorProto.FLOAT


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], f"cast_{source}", to=to)


def _halve_attributes(node: NodeProto) -> None:
    """The stored tensor of a Constant or ConstantOfShape, and the type that a Cast makes."""
    for each in node.attribute:
        if each.type == onnx.AttributeProto.TENSOR:
            _halve(each.t)
        elif node.op_type == "Cast" and each.name == "to" and each.i == TensorProto.FLOAT:
            each.i = TensorProto.FLOAT16


def _halve(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise ValueError(f"{tensor.name}: holds {np.abs(values).max():.3g}, which FP16 cannot; leave --half out")
    tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name))
