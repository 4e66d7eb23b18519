"""Rules of runtimes for quantized ONNX files: each yields the nodes of a graph that break it, and how.

TensorRT's are those of its explicit quantization ("Working with Quantized Types", IQuantizeLayer and IDequantizeLayer
in NVIDIA's documentation; issues 2774, 3038, 4554 and 4698 of NVIDIA/TensorRT, 850 of onnx/onnx-tensorrt).
"""

from collections.abc import Callable, Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from common.runtimes.quantized_graphs import (
    DEQUANTIZE,
    MOVES,
    PAIR,
    QUANTIZE,
    SCALE,
    WEIGHTED,
    ZERO_POINT,
    QuantizedGraph,
    attribute,
)

Found = Iterator[tuple[NodeProto, str]]  # a node, and what is wrong with it
Rule = Callable[[QuantizedGraph], Found]

DOMAINS = ("", "ai.onnx")
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
FUSED = (  # with the convolution before them
    *("BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid"),
    *("HardSwish", "Gelu", "Tanh", "Softplus", "Mish", "Erf", "ThresholdedRelu"),
)
IN_INT8 = (
    *WEIGHTED,
    "Add",
    "Sub",
    "Mul",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Resize",
)
LARGEST_CODE = 127  # of a weight; -128 has no opposite


def standard_operators(graph: QuantizedGraph) -> Found:
    """Operators of ONNX itself alone."""
    for node in graph.nodes:
        if node.domain not in DOMAINS:
            yield node, f"an operator of {node.domain}, wanted one of ONNX"


def no_integer_operators(graph: QuantizedGraph) -> Found:
    """Arithmetic stands in float between pairs; the runtime makes integer operators of it."""
    for node in graph.nodes:
        if node.op_type in INTEGER_OPERATORS:
            yield node, "integer arithmetic, wanted the operator in float between QuantizeLinear and DequantizeLinear"


def constant_parameters(graph: QuantizedGraph) -> Found:
    """Scales and zero points are stored, and scales are finite numbers above 0."""
    for node in graph.nodes:
        if node.op_type not in PAIR:
            continue
        scale = graph.constant(node, SCALE)
        if scale is None:
            yield node, "its scale is computed, wanted a stored one"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node, "a scale that is no number above 0"
        if _has(node, ZERO_POINT) and graph.constant(node, ZERO_POINT) is None:
            yield node, "its zero point is computed, wanted a stored one"


def codes_of_eight_bits(graph: QuantizedGraph) -> Found:
    """Codes are int8 or uint8; those of biases may be int32."""
    for node in graph.nodes:
        known = (None, TensorProto.INT8, TensorProto.UINT8)
        bias = (TensorProto.INT32,) if node.op_type == DEQUANTIZE and graph.holds_constants(node) else ()
        if node.op_type in PAIR and graph.code_type(node) not in (*known, *bias):
            yield node, f"codes of {_type_name(graph.code_type(node))}, wanted int8 or uint8"


def signed_codes(graph: QuantizedGraph) -> Found:
    """Codes are int8, of images too."""
    for node in graph.nodes:
        if node.op_type in PAIR and graph.code_type(node) not in (None, TensorProto.INT8):
            yield node, f"codes of {_type_name(graph.code_type(node))}, wanted int8"


def no_zero_points(graph: QuantizedGraph) -> Found:
    """Quantization is symmetric: all zero points are 0, or left out."""
    for node in graph.nodes:
        zero_point = graph.constant(node, ZERO_POINT) if node.op_type in PAIR else None
        if zero_point is not None and zero_point.astype(float).any():
            yield node, f"the zero point {_first_other(zero_point)}, wanted 0 (symmetric quantization)"


def activations_by_tensor(graph: QuantizedGraph) -> Found:
    """Images have one scale; weights may have one for each channel."""
    for node in graph.nodes:
        scale = graph.constant(node, SCALE) if node.op_type in PAIR else None
        if scale is not None and scale.size != 1 and not graph.holds_constants(node):
            yield node, f"{scale.size} scales of an activation, wanted one"


def weights_by_output_channel(graph: QuantizedGraph) -> Found:
    """Several scales of weights are those of their output channels."""
    for node in graph.nodes:
        pair = _weights_pair(graph, node)
        scale = None if pair is None else graph.constant(pair, SCALE)
        if pair is None or scale is None or scale.size == 1:
            continue
        wanted, axis = _channel_axis(graph, node), graph.axis(pair)
        if wanted is not None and (scale.ndim != 1 or axis != wanted):
            yield pair, f"scales on axis {axis} of the weights of {node.op_type}, wanted axis {wanted} or one scale"


def symmetric_codes_of_weights(graph: QuantizedGraph) -> Found:
    """Codes of weights are -127 to 127."""
    for node in graph.nodes:
        pair = _weights_pair(graph, node)
        if pair is not None and _smallest_code(graph, pair) < -LARGEST_CODE:
            yield (
                pair,
                f"a weight of the code {_smallest_code(graph, pair):.0f}, wanted {-LARGEST_CODE} to {LARGEST_CODE}",
            )


def weights_in_float(graph: QuantizedGraph) -> Found:
    """Weights are stored in float in front of a QuantizeLinear: stored as int8, only newer versions load them."""
    for node in graph.nodes:
        if node.op_type == DEQUANTIZE and graph.stored_type(node, 0) == TensorProto.INT8:
            yield node, "stored codes, wanted stored floats in front of a QuantizeLinear"


def biases_in_float(graph: QuantizedGraph) -> Found:
    """Biases are stored floats."""
    for node in graph.nodes:
        if node.op_type in WEIGHTED and graph.is_dequantized(node, 2):
            yield node, "a bias behind DequantizeLinear, wanted stored floats"


def both_or_none(graph: QuantizedGraph) -> Found:
    """Of a convolution or matrix product input and weights have pairs, of a sum both inputs."""
    for node in graph.nodes:
        if node.op_type in WEIGHTED or (node.op_type == "Add" and not _adds_constant(graph, node)):
            pairs = [graph.dequantize_of(node, place) is not None for place in (0, 1)]
            if pairs in ([True, False], [False, True]):
                yield node, f"its {'first' if pairs[0] else 'second'} input alone is quantized, wanted both or none"


def no_pair_before_fused(graph: QuantizedGraph) -> Found:
    """No rounding between a convolution and the batch norm or activation that is computed with it."""
    for node in graph.nodes:
        pair = graph.maker(node, 0) if node.op_type in FUSED and graph.is_dequantized(node, 0) else None
        source = None if pair is None else graph.source(pair)
        computed = None if source is None else graph.maker(source, 0)
        if pair is not None and computed is not None and computed.op_type in WEIGHTED:
            yield pair, f"a pair between {computed.op_type} and {node.op_type}, which are computed together without it"


def int8_behind_pairs(graph: QuantizedGraph) -> Found:
    """Behind a pair stands something that computes in int8, else it is rounding that costs time."""
    for node in graph.nodes:
        if node.op_type == DEQUANTIZE and not graph.holds_constants(node) and not _reaches_int8(graph, node):
            yield node, "nothing in int8 behind it: rounding that costs time"


def pairs_stand_together(graph: QuantizedGraph) -> Found:
    """Behind a quantize stands its dequantize, of the same scale: operators on codes break a runtime's fusions."""
    for node in graph.nodes:
        if node.op_type == QUANTIZE:
            for user in graph.takers[node.output[0]]:
                if user.op_type != DEQUANTIZE:
                    yield user, "an operator on codes, wanted it in float between pairs"
                elif not _equal(graph.constant(node, SCALE), graph.constant(user, SCALE)):
                    yield user, "reads codes in another scale than they were made in"
        elif node.op_type == DEQUANTIZE and (maker := graph.maker(node, 0)) and maker.op_type != QUANTIZE:
            yield node, f"codes from {maker.op_type}, wanted QuantizeLinear"


def unsigned_inputs(graph: QuantizedGraph) -> Found:
    """Inputs of convolutions are uint8: with int8 ONNX Runtime fuses a part of them (42 of SceneSeg's 100)."""
    for node in graph.nodes:
        pair = graph.maker(node, 0) if node.op_type == "Conv" and graph.is_dequantized(node, 0) else None
        if pair is not None and graph.code_type(pair) == TensorProto.INT8 and _weights_pair(graph, node) is not None:
            yield node, "its input is int8, which may be computed in float; wanted uint8"


def integer_biases(graph: QuantizedGraph) -> Found:
    """Biases between codes are int32 behind a DequantizeLinear: ONNX Runtime before 1.21 computes others in float."""
    for node in graph.nodes:
        if graph.has_float_bias(node):
            yield node, "a bias in float, which versions before 1.21 compute in float; wanted int32 codes"


def _has(node: NodeProto, place: int) -> bool:
    return place < len(node.input) and bool(node.input[place])


def _type_name(number: int | None) -> str:
    return TensorProto.DataType.Name(number).lower() if number is not None else "an unknown type"


def _first_other(zero_point: np.ndarray) -> int:
    return int(zero_point[zero_point != 0].ravel()[0]) if zero_point.ndim else int(zero_point)


def _equal(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two scales are the same, or not known."""
    return first is None or second is None or np.array_equal(first, second)


def _weights_pair(graph: QuantizedGraph, node: NodeProto) -> NodeProto | None:
    """The dequantize of the stored weights of a convolution or matrix product."""
    pair = graph.dequantize_of(node, 1) if node.op_type in WEIGHTED else None
    return pair if pair is not None and graph.holds_constants(pair) else None


def _channel_axis(graph: QuantizedGraph, node: NodeProto) -> int | None:
    """The axis of the output channels where the weights of `node` are stored; None where they are moved in between."""
    axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 1
    move = graph.maker(node, 1)
    if move is None or move.op_type == DEQUANTIZE:
        return axis
    order = attribute(move, "perm")
    turned = move.op_type == "Transpose" and graph.is_dequantized(move, 0) and isinstance(order, list)
    return order[axis] if turned else None


def _smallest_code(graph: QuantizedGraph, pair: NodeProto) -> float:
    """Of stored weights, as codes or as floats."""
    first = graph.source(pair) or pair
    values, scale = graph.constant(first, 0), graph.constant(first, SCALE)
    if values is None or scale is None or not values.size:
        return 0.0
    if first is pair or not (scale > 0).all():
        return float(values.min())
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[graph.axis(first)] = -1
        scale = scale.reshape(shape)
    return float(np.rint(values / scale).min())


def _adds_constant(graph: QuantizedGraph, node: NodeProto) -> bool:
    return any(name in graph.constants for name in node.input)


def _reaches_int8(graph: QuantizedGraph, node: NodeProto) -> bool:
    """Whether something that can be computed in int8 takes what `node` makes, through moves of values."""
    users = [user for name in node.output for user in graph.takers[name]]
    return any(
        user.op_type in IN_INT8 or user.op_type == QUANTIZE or (user.op_type in MOVES and _reaches_int8(graph, user))
        for user in users
    )
