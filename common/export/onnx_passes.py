"""Rewrites of a written ONNX graph that keep what it computes: how weights are stored, and older operator sets."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from common.runtimes.quantized_graphs import DEQUANTIZE, PAIR, QUANTIZE, ZERO_POINT, attribute

Stored = Mapping[str, TensorProto]
NEW_IN_18: dict[
    str, dict[str, object]
] = {  # operator -> attributes that have this value in the older form, which lacks them
    "Split": {"num_outputs": None},  # of equal parts, which the older form makes as well
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "LpPool": {"ceil_mode": 0},
    "Pad": {},
    "ScatterElements": {},
    "ScatterND": {},
}
# operators that say the same in sets 18 and 20, with these values of attributes; set 18 may lack those
SAME_IN_18: dict[str, dict[str, Sequence[object]]] = {
    "AveragePool": {"ceil_mode": (None, 0), "dilations": (None, [1, 1])},
    "Cast": {"saturate": (None, 1)},
    "Pad": {"mode": (None, b"constant", b"reflect", b"edge")},
    "QuantizeLinear": {"saturate": (None, 1)},
    "Resize": {"coordinate_transformation_mode": (None, b"half_pixel", b"pytorch_half_pixel", b"align_corners")},
    **dict.fromkeys(("Constant", "ConstantOfShape", "DequantizeLinear", "Equal", "Identity", "Reshape", "Shape"), {}),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), {}),
}
INPUTS_IN_17 = {"Pad": 3}  # how many there are


def store_zero_points(proto: onnx.ModelProto) -> int:
    """Zero points that the file would cast from another type when it is loaded, in place; returns how many.

    The exporter's own folding of constants leaves out those of 1024 channels and more.
    """
    stored, casts = stored_tensors(proto), {}
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:
            casts[node.output[0]] = node
    changed = 0
    for node in proto.graph.node:
        if node.op_type in PAIR and len(node.input) > ZERO_POINT and node.input[ZERO_POINT] in casts:
            cast = casts[node.input[ZERO_POINT]]
            kind = helper.tensor_dtype_to_np_dtype(attribute(cast, "to"))
            values = numpy_helper.to_array(stored[cast.input[0]]).astype(kind)
            node.input[ZERO_POINT] = f"{cast.output[0]}_stored{changed}"
            proto.graph.initializer.append(numpy_helper.from_array(values, node.input[ZERO_POINT]))
            changed += 1
    if changed:
        drop_dead_nodes(proto)
    return changed


def separate_weights(proto: onnx.ModelProto) -> int:
    """Give every int8 weight's dequantize a weight and a zero point of its own, in place; returns how many were shared.

    On processors without an int8 dot product (VNNI) ONNX Runtime turns weights to uint8 (session.x64quantprecision),
    one dequantize after the other, and fails on what it has turned before.
    """
    stored, taken = stored_tensors(proto), set[str]()
    copies: list[TensorProto] = []
    for node in proto.graph.node:
        if node.op_type != DEQUANTIZE or node.input[0] not in stored:
            continue
        for place in (0, ZERO_POINT):
            name = node.input[place]
            if name in taken:
                own = TensorProto()
                own.CopyFrom(stored[name])
                own.name = node.input[place] = f"{name}_copy{len(copies)}"
                copies.append(own)
            taken.add(name)
    proto.graph.initializer.extend(copies)
    return len(copies)


def store_weights_in_float(proto: onnx.ModelProto) -> int:
    """Store weights as floats that a QuantizeLinear turns to the same codes, in place; returns how many.

    Stored codes alone in front of a DequantizeLinear are read only by newer versions of TensorRT.
    """
    stored = stored_tensors(proto)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] in stored:
            source = node.input[0]
            codes, scale, zero_point = (numpy_helper.to_array(stored[name]) for name in node.input)
            if scale.ndim:
                shape = [1] * codes.ndim
                shape[attribute(node, "axis", 1)] = -1
                scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
            values = (codes.astype(np.float32) - zero_point) * scale
            name, made = f"{source}_values", f"{source}_codes"
            proto.graph.initializer.append(numpy_helper.from_array(values, name))
            quantize = helper.make_node(QUANTIZE, [name, *node.input[1:]], [made], f"{node.name}_quantize")
            quantize.attribute.extend(node.attribute)
            node.input[0] = made
            nodes.append(quantize)
        nodes.append(node)
    added = len(nodes) - len(proto.graph.node)
    replace_nodes(proto, nodes)
    drop_unused(proto)
    return added


def lower_average_pools(proto: onnx.ModelProto) -> bool:
    """A file of operator set 20 that has average pools as one of 18, in place, if all it holds is the same there.

    ONNX Runtime computes those of set 19 and newer one number at a time: 3x3 of three channels of 360x480 in 1.22 ms,
    and in 0.11 in the older form (1.32 on one thread). Returns whether the file was changed.
    """
    nodes = list(proto.graph.node)
    if not any(node.op_type == "AveragePool" for node in nodes) or not all(map(_is_the_same_in_18, nodes)):
        return False
    for node in nodes:
        if not node.domain:
            _keep_attributes(node, onnx.defs.get_schema(node.op_type, 18).attributes.__contains__)
    _set_version(proto, 18)
    return True


def _is_the_same_in_18(node: NodeProto) -> bool:
    if node.domain or onnx.defs.get_schema(node.op_type, 20).since_version <= 18:
        return True
    usual = SAME_IN_18.get(node.op_type)
    return usual is not None and all(attribute(node, name) in values for name, values in usual.items())


def lower_to_17(proto: onnx.ModelProto) -> None:
    """A file of operator set 18 as one of 17, in place.

    Raises:
        ValueError: an operator that set 17 has not, or not in this form.
    """
    stored = stored_tensors(proto)
    for node in proto.graph.node:
        if node.domain or onnx.defs.get_schema(node.op_type, 18).since_version < 18:
            continue
        if node.op_type.startswith("Reduce"):
            _lower_reduction(node, stored)
        elif node.op_type in NEW_IN_18:
            _drop_new_attributes(node)
        else:
            raise ValueError(f"{node.op_type} is not in operator set 17; export with --opset 18 or newer")
    _set_version(proto, 17)
    drop_unused(proto)


def _lower_reduction(node: NodeProto, stored: Stored) -> None:
    """Its axes are an input in set 18, and an attribute in 17."""
    axes = list(node.input[1:])
    if axes and axes[0] not in stored:
        raise ValueError(f"{node.op_type} of computed axes is not in operator set 17; export with --opset 18 or newer")
    del node.input[1:]
    _keep_attributes(node, lambda name: name != "noop_with_empty_axes")
    if axes:
        values = numpy_helper.to_array(stored[axes[0]]).ravel().tolist()
        node.attribute.append(helper.make_attribute("axes", values))


def _drop_new_attributes(node: NodeProto) -> None:
    usual = NEW_IN_18[node.op_type]
    known = {*onnx.defs.get_schema(node.op_type, 17).attributes, *usual}
    strange = [name for name, value in usual.items() if value is not None and attribute(node, name, value) != value]
    strange += [each.name for each in node.attribute if each.name not in known]
    if strange or len(node.input) > INPUTS_IN_17.get(node.op_type, len(node.input)):
        raise ValueError(f"{node.op_type} has no such form in operator set 17; export with --opset 18 or newer")
    _keep_attributes(node, lambda name: name not in usual)


def _keep_attributes(node: NodeProto, keeps: Callable[[str], bool]) -> None:
    kept = [each for each in node.attribute if keeps(each.name)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _set_version(proto: onnx.ModelProto, version: int) -> None:
    for entry in proto.opset_import:
        if not entry.domain:
            entry.version = version


def stored_tensors(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    """The stored tensors of a graph by their names: initializers, and the values of Constant nodes."""
    constants = {node.output[0]: attribute(node, "value") for node in proto.graph.node if node.op_type == "Constant"}
    found = {name: value for name, value in constants.items() if value is not None}
    return found | {tensor.name: tensor for tensor in proto.graph.initializer}


def drop_dead_nodes(proto: onnx.ModelProto) -> None:
    """Take away the nodes whose results nothing reads, and the stored tensors that they alone read, in place."""
    read = {output.name for output in proto.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(proto.graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(name for each in _all_nodes([node]) for name in each.input)
    replace_nodes(proto, kept[::-1])
    drop_unused(proto)


def drop_unused(proto: onnx.ModelProto) -> None:
    """Take away stored tensors that nothing reads, in place."""
    read = {name for node in _all_nodes(proto.graph.node) for name in node.input}
    read |= {output.name for output in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """Those of graphs within as well."""
    for node in nodes:
        yield node
        for each in node.attribute:
            for graph in (*([each.g] if each.HasField("g") else []), *each.graphs):
                yield from _all_nodes(graph.node)


def replace_nodes(proto: onnx.ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Give a graph these nodes, which may be its own, in place."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
