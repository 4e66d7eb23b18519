"""What every ONNX Runtime makes an int8 kernel of, and what not: biases, zero points, constant channels, float weights.

ONNX Runtime before 1.21 computes a convolution between pairs in float when its bias is stored in float; later versions
round the bias by themselves, to the same codes.
"""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from common.export.onnx_passes import drop_dead_nodes, drop_unused, replace_nodes
from common.runtimes.quantized_graphs import DEQUANTIZE, QUANTIZE, SCALE, ZERO_POINT, QuantizedGraph, attribute

LARGEST = 2**31 - 1
CHANNELS = 1  # the axis of a tensor
POINTWISE = ("Add", "Sub", "Mul", "Div")


def store_integer_biases(proto: onnx.ModelProto) -> int:
    """Biases between codes as int32 behind a DequantizeLinear, in place; returns how many.

    In steps of the integer sum, input scale x weight scale, of which `round_biases` made them whole numbers.
    """
    graph = QuantizedGraph.of(proto.graph)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        if graph.has_float_bias(node):
            codes, step = _in_steps(graph, node)
            if np.abs(codes).max(initial=0) <= LARGEST:
                nodes.append(_dequantized(proto, node, codes.astype(np.int32), step))
        nodes.append(node)
    added = len(nodes) - len(proto.graph.node)
    replace_nodes(proto, nodes)
    drop_unused(proto)
    return added


def _in_steps(graph: QuantizedGraph, node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """The bias as whole numbers, and their step: one, or one for each channel, float32."""
    pairs = [graph.maker(node, place) for place in (0, 1)]
    of_input, of_weights = (None if pair is None else graph.constant(pair, SCALE) for pair in pairs)
    bias = graph.constant(node, 2)
    assert of_input is not None and of_weights is not None and bias is not None
    step = np.float32(of_input) * of_weights.astype(np.float32)
    return np.rint(bias.astype(np.float64) / step.astype(np.float64)), step


def _dequantized(proto: onnx.ModelProto, node: NodeProto, codes: np.ndarray, step: np.ndarray) -> NodeProto:
    """The dequantize of a bias, which `node` takes from now on."""
    name = f"{node.input[2]}_of_{node.output[0]}"  # the module's, which readers of the file look for
    proto.graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(step), f"{name}_step"))
    node.input[2] = name
    dequantize = helper.make_node(DEQUANTIZE, [f"{name}_codes", f"{name}_step"], [name], f"{name}_dequantize")
    if step.ndim:
        dequantize.attribute.append(helper.make_attribute("axis", 0))
    return dequantize


def share_no_zero_points(proto: onnx.ModelProto) -> None:
    """Write stored int8 codes so that tools which merge equal tensors leave a file that loads anywhere, in place.

    ONNX Runtime's exact kernels (session.x64quantprecision) turn int8 weights to uint8, one dequantize after the other,
    and refuse a file where two share a zero point, or the codes. Convolutions need no zero point where it is 0; of
    other weights, and of depthwise ones that equal others, the codes are uint8 already, with the same values; a summand
    or factor, which is computed in float, is stored in float.
    """
    graph = QuantizedGraph.of(proto.graph)
    repeated = _repeated_depthwise(graph)
    for pair in graph.nodes:
        if pair.op_type != DEQUANTIZE or graph.stored_type(pair, 0) != TensorProto.INT8:
            continue
        zero_point, takers = graph.constant(pair, ZERO_POINT), graph.takers[pair.output[0]]
        scale = graph.constant(pair, SCALE)
        if scale is not None and scale.ndim == 0 and {taker.op_type for taker in takers} <= set(POINTWISE):
            _store(proto, takers, pair.output[0], _values(graph, pair))
        elif zero_point is not None and not zero_point.any() and _does_without(graph, pair, repeated):
            del pair.input[ZERO_POINT:]
        elif zero_point is not None:
            for place, values in ((0, graph.constant(pair, 0)), (ZERO_POINT, zero_point)):
                assert values is not None
                name = f"{pair.output[0]}_{'codes' if place == 0 else 'zero_point'}"
                proto.graph.initializer.append(numpy_helper.from_array(_unsigned(values), name))
                pair.input[place] = name
    drop_dead_nodes(proto)


def _repeated_depthwise(graph: QuantizedGraph) -> set[str]:
    """The dequantizes, by their outputs, of depthwise weights whose codes are those of others before.

    Other convolutions of equal codes are left out, since one of uint8 has no fast kernel.
    """
    known, repeated = set[bytes](), set[str]()
    for pair in graph.nodes:
        codes = graph.constant(pair, 0) if pair.op_type == DEQUANTIZE else None
        takers = graph.takers[pair.output[0]]
        if codes is not None and codes.ndim and all(attribute(each, "group", 1) == len(codes) for each in takers):
            if codes.tobytes() in known:
                repeated.add(pair.output[0])
            known.add(codes.tobytes())
    return repeated


def _does_without(graph: QuantizedGraph, pair: NodeProto, repeated: set[str]) -> bool:
    """Whether every version takes weights without a zero point: by channel where there is an int8 kernel alone, of a
    matrix product not at all, and not `repeated` ones."""
    takers, scale = graph.takers[pair.output[0]], graph.constant(pair, SCALE)
    if pair.output[0] in repeated:
        return False
    return all(
        taker.op_type in ("Conv", "ConvTranspose")
        and ((scale is not None and scale.ndim == 0) or graph.computes_on_codes(taker))
        for taker in takers
    )


def _unsigned(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.int16) + 128).astype(np.uint8)


def _values(graph: QuantizedGraph, pair: NodeProto) -> np.ndarray:
    """What a dequantize of stored codes with one scale gives."""
    codes, scale, zero_point = (graph.constant(pair, place) for place in (0, SCALE, ZERO_POINT))
    assert codes is not None and scale is not None
    offset = 0 if zero_point is None else zero_point.astype(np.float32)
    return ((codes.astype(np.float32) - offset) * scale).astype(np.float32)


def _store(proto: onnx.ModelProto, takers: list[NodeProto], name: str, values: np.ndarray) -> None:
    """Give `takers` stored values in the place of the computed ones of this name."""
    stored = f"{name}_values"
    proto.graph.initializer.append(numpy_helper.from_array(values, stored))
    for taker in takers:
        taker.input[:] = [stored if each == name else each for each in taker.input]


def hold_float_weights(proto: onnx.ModelProto) -> int:
    """Keep ONNX Runtime from rounding weights that are stored in float, in place; returns of how many layers.

    Between a dequantize and a quantize it rounds them by itself (its WeightBiasQuantization), in one scale for all: a
    layer that is kept in float because these cost too much loses them once more. A LeakyReLU of slope 1, which gives
    what it takes, hides the quantize, and costs nothing: it is computed with the convolution.
    """
    graph = QuantizedGraph.of(proto.graph)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        nodes.append(node)
        held = node.op_type in ("Conv", "ConvTranspose", "Gemm") and graph.is_dequantized(node, 0)
        if held and graph.stored_type(node, 1) == TensorProto.FLOAT and node.output[0] not in graph.outputs:
            name, node.output[0] = node.output[0], f"{node.output[0]}_in_float"
            nodes.append(helper.make_node("LeakyRelu", [node.output[0]], [name], f"{node.name}_in_float", alpha=1.0))
    added = len(nodes) - len(proto.graph.node)
    replace_nodes(proto, nodes)
    return added


def pad_constant_channels(proto: onnx.ModelProto) -> int:
    """Pad channels of one number to others, in place, where they were made and joined; returns how many times.

    Tools that ask for all shapes beforehand cannot follow the shape of a dynamic batch.
    """
    graph = QuantizedGraph.of(proto.graph)
    changed = 0
    for node in graph.nodes:
        if node.op_type != "Concat" or len(node.input) != 2 or attribute(node, "axis") != CHANNELS:
            continue
        filled = _filled(graph, node)
        if filled is None:
            continue
        channels, value = filled
        name = node.output[0]
        for ending, values in (("pads", np.array([0, 0, 0, 0, 0, channels, 0, 0])), ("value", value)):
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"{name}_{ending}"))
        node.op_type = "Pad"
        del node.attribute[:]
        node.input[:] = [node.input[0], f"{name}_pads", f"{name}_value"]
        changed += 1
    if changed:
        drop_dead_nodes(proto)
    return changed


def _filled(graph: QuantizedGraph, node: NodeProto) -> tuple[int, np.ndarray] | None:
    """How many channels of which number, or code, the second input of a concatenation is; None where it is none."""
    maker = graph.maker(node, 1)
    pair = maker if maker is not None and maker.op_type == QUANTIZE else None
    expand = graph.maker(pair, 0) if pair is not None else maker
    shape = graph.maker(expand, 1) if expand is not None and expand.op_type == "Expand" else None
    if expand is None or shape is None or shape.op_type != "Concat" or len(shape.input) != 4:
        return None
    value, channels = graph.constant(expand, 0), graph.constant(shape, CHANNELS)
    if value is None or value.size != 1 or channels is None or channels.size != 1:
        return None
    value = value.reshape(())
    if pair is not None:
        value = _as_code(graph, pair, value)
    return int(channels.ravel()[0]), value


def _as_code(graph: QuantizedGraph, pair: NodeProto, value: np.ndarray) -> np.ndarray:
    scale, zero_point = graph.constant(pair, SCALE), graph.constant(pair, ZERO_POINT)
    assert scale is not None and zero_point is not None
    ends = np.iinfo(zero_point.dtype)
    code = np.rint(value / scale) + zero_point.astype(np.float32)
    return np.clip(code, ends.min, ends.max).astype(zero_point.dtype)
