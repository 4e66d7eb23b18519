"""What of a quantized graph is computed in float: the operators, how many there are, and where they stand."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.export.channelwise import is_image
from common.export.int8_graph import GATES, MOVES
from common.export.subpixel import is_subpixel
from common.quantization.batch_norm import fold_batch_norm
from common.quantization.folding import IN_FLOAT
from common.quantization.graphs import PRELU, RELU, TRANSPOSED, WEIGHTED, stored, with_relu
from common.quantization.nodes import input_of
from common.quantization.pt2e import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE
from common.quantization.quantizer import module_names
from common.quantization.simulation import fake_quantizations
from common.runtimes.targets import ONNX_RUNTIME, Target

logger = logging.getLogger(__name__)

aten = torch.ops.aten
# what ONNX Runtime computes on codes between a dequantize and a quantize
INT8 = {
    *WEIGHTED - {TRANSPOSED},
    *GATES,
    *(aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor),
    *(aten.sigmoid.default, aten.sigmoid_.default, aten.leaky_relu.default, aten.leaky_relu_.default),
    *(aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default),
}
# no arithmetic: values are moved, or are those that they were
NO_ARITHMETIC = {
    *MOVES,
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.dropout_.default),
    *(aten.expand.default, aten.repeat.default, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
    *(aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.select.int, aten.stack.default),
    *(aten.pad.default, aten.constant_pad_nd.default, aten.pixel_shuffle.default, aten.channel_shuffle.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten.feature_dropout.default),
}
# computed with the operator before them where a target fuses activations
ACTIVATIONS = {
    *(*RELU, *GATES, aten.sigmoid.default, aten.sigmoid_.default, aten.leaky_relu.default, aten.leaky_relu_.default),
    *(aten.hardtanh.default, aten.hardtanh_.default, aten.hardswish.default, aten.hardswish_.default),
    *(aten.hardsigmoid.default, aten.hardsigmoid_.default, aten.elu.default, aten.elu_.default, aten.prelu.default),
    *(aten.tanh.default, aten.clamp.default, aten.mish.default, aten.softplus.default, aten.selu.default),
}
NAMED = 3  # modules of an operator that are told

InFloat = Mapping[str, tuple[str, ...]]  # operator -> the module of each


def in_float(graph: GraphModule, target: Target = ONNX_RUNTIME) -> InFloat:
    """The operators of a converted graph that its target computes in float, those that are most first."""
    pairs = {node for node in graph.graph.nodes if node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL)}
    return _in_float(graph, pairs, target)


def in_float_when_converted(prepared: GraphModule, target: Target = ONNX_RUNTIME) -> InFloat:
    """The same of a graph that is prepared for training, which stays as it is."""
    folded = copy.deepcopy(prepared)
    fold_batch_norm(folded)
    return _in_float(folded, set(fake_quantizations(folded).values()), target)


def _in_float(graph: GraphModule, pairs: set[Node], target: Target) -> InFloat:
    is_int8 = _is_int8_or_fused if target.fuses_activations else _is_int8
    by_channel = _is_by_channel if target.channelwise else lambda node, pairs: False
    found: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        is_float = _computes(node) and not is_int8(graph, node, pairs) and not by_channel(node, pairs)
        name = _operator(node) if is_float else ""
        if name and node not in pairs:
            found.setdefault(name, []).append(next(iter(module_names(node)), ""))
    return {name: tuple(places) for name, places in sorted(found.items(), key=lambda item: -len(item[1]))}


def int8_share(int8: GraphModule, target: Target = ONNX_RUNTIME) -> float:
    """The share of the multiplications of an image, 0..1, that are in int8; of a graph as `convert` leaves it.

    Those of operators with weights: numbers of the output times numbers of the weights of each.
    """
    pairs = {node for node in int8.graph.nodes if node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL)}
    is_int8 = _is_int8_or_fused if target.fuses_activations else _is_int8
    total = in_codes = 0
    for node in [node for node in int8.graph.nodes if node.target in WEIGHTED]:
        count = _multiplications(int8, node)
        total += count
        in_codes += count * is_int8(int8, node, pairs)
    return in_codes / total if total else 0.0


def _multiplications(graph: GraphModule, node: Node) -> int:
    """Of one image: every number of the output takes one with each weight of its channel, a transposed convolution one
    of every number of its input with each of its weights."""
    weight = input_of(node, 1)
    source = input_of(weight) if weight.target in (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL) else weight
    values = stored(graph, source) if source.op == "get_attr" else source.meta["val"]
    counted = input_of(node) if node.target == TRANSPOSED else node
    while "val" not in counted.meta:  # a pair has the shape of what it rounds
        counted = input_of(counted)
    return math.prod(counted.meta["val"].shape[1:]) * math.prod(values.shape[1:])


def _computes(node: Node) -> bool:
    """Whether it computes numbers from an image; stored values alone become stored values."""
    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target not in NO_ARITHMETIC
        and any(source.op != "get_attr" for source in node.all_input_nodes)
        and (value is None or (isinstance(value, Tensor) and value.is_floating_point()))
    )


def _is_int8(graph: GraphModule, node: Node, pairs: set[Node]) -> bool:
    operands = [each for each in node.args if isinstance(each, Node)]
    if node.target in RELU:  # in int8 the first code of the operator before it; in float not told apart from it
        return operands[0] not in pairs
    if node.target in WEIGHTED:
        known = (node.target in INT8 or is_subpixel(graph, node)) and all(each in pairs for each in operands[:2])
    else:
        known = node.target in INT8 and all(each in pairs and not _is_stored(each) for each in operands)
    return known and set(with_relu(node).users) <= pairs


def _is_int8_or_fused(graph: GraphModule, node: Node, pairs: set[Node]) -> bool:
    """Whether a target that fuses activations computes a node in int8, or with one in int8; its output may be float."""
    operands = [each for each in node.args if isinstance(each, Node)]
    if node.target in ACTIVATIONS:
        return operands[0] not in pairs and _is_int8_or_fused(graph, operands[0], pairs)
    if node.target in WEIGHTED:
        return all(each in pairs for each in operands[:2])
    return node.target in INT8 and all(each in pairs and not _is_stored(each) for each in operands)


def _is_by_channel(node: Node, pairs: set[Node]) -> bool:
    """Whether it is a lone batch norm or PReLU, or one behind the other, between pairs."""
    first, last = node, node
    while _multiplies_channels(first):
        first = input_of(first)
    while len(last.users) == 1 and _multiplies_channels(next(iter(last.users))):
        (last,) = last.users
    return _multiplies_channels(node) and is_image(node) and first in pairs and set(last.users) <= pairs


def _multiplies_channels(node: Node) -> bool:
    return node.target == PRELU or IN_FLOAT in node.meta


def _is_stored(pair: Node) -> bool:
    """Whether it stands for values of the file, whose codes are signed, where those of images are not."""
    return pair.all_input_nodes[0].op == "get_attr"


def _operator(node: Node) -> str:
    """aten.silu_.default -> silu; the two of a batch norm that is on its own are told as one."""
    told = node.meta.get(IN_FLOAT)
    return told if isinstance(told, str) else str(node.target).split(".")[1].rstrip("_")


def tell(found: InFloat) -> None:
    """Say it in the log of the run."""
    logger.info(summary(found))


def summary(found: InFloat) -> str:
    """One line: how many of each, and the largest modules that they are part of."""
    if not found:
        return "in float: nothing"
    return "in float: " + ", ".join(_one_told(name, places) for name, places in found.items())


def _one_told(name: str, places: tuple[str, ...]) -> str:
    modules = [module for module, _ in Counter(places).most_common() if module]
    listed = ", ".join(modules[:NAMED]) + (", ..." if len(modules) > NAMED else "")
    return f"{len(places)} {name}{f' ({listed})' if listed else ''}"


def counts(found: InFloat) -> dict[str, int]:
    """Operator -> how many, as files say it."""
    return {name: len(places) for name, places in found.items()}
