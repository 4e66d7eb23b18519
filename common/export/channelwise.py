"""What multiplies each channel by a factor of its own, as ONNX Runtime computes it in int8, or at least in vectors.

A batch norm that follows no convolution is g x + b. Between codes it becomes a depthwise convolution of 1x1 with a
scale for each channel, in which every factor is exact. A PReLU of the slopes a is the sum of max(t, 0) and a min(t, 0):
two such convolutions of the same codes, also behind a batch norm, which saturate on one side of 0. Their zero points
are the ends of the codes. One of the two is always 0, and the sum of the other with it in the same scale is exact, so
that the result is the float one's, rounded. ONNX Runtime has no int8 form of either operator, and computes a PReLU one
number at a time: of ESPNet's 46 ms in INT8 20 were PReLU. (The maximum of two codes, where slopes are below 1, takes
about 0.1 ms less of a millisecond; ONNX Runtime before 1.24 has none and does not load such a file.)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.quantization.folding import IN_FLOAT
from common.quantization.graphs import PRELU, drop_unused_values, finish, store_beside, stored
from common.quantization.nodes import input_of, setting_of
from common.quantization.pt2e import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE

aten = torch.ops.aten
IMAGE_RANK = 4
LARGEST_CODE = 127  # of a factor, in a scale of its own
LARGEST_BIAS = 2**30  # steps of an integer sum
SMALLEST_SCALE = 2**-60  # of factors: those of channels that died in training are smaller than float32 divides by
Grid = tuple[Any, ...]  # of codes: the arguments of a quantize behind what it takes


@dataclass(frozen=True)
class _Affine:
    """factor x + shift of what `source` computes, of each channel."""

    source: Node
    factor: Tensor  # (C,)
    shift: Tensor  # (C,)

    def times(self, slopes: Tensor) -> "_Affine":
        """Its result multiplied by one of `slopes` (C,) for each channel."""
        return _Affine(self.source, slopes * self.factor, slopes * self.shift)


@torch.no_grad()
def use_channelwise_forms(int8: GraphModule) -> int:
    """Rewrite every batch norm and PReLU between codes, and the other PReLU in float, in place; returns how many."""
    changed = 0
    nodes = list(int8.graph.nodes)
    for node in [*(each for each in nodes if each.target == PRELU), *filter(_is_batch_norm, nodes)]:
        affine = _affine(int8, input_of(node) if node.target == PRELU else node, _channels(node))
        slopes = _slopes(int8, node)
        between_codes = affine.source.target == DEQUANTIZE and [user.target for user in node.users] == [QUANTIZE]
        if between_codes and is_image(node):
            _use_codes(int8, node, affine, slopes)
        elif slopes is not None:
            _use_vectors(int8, node, slopes)
        else:
            continue
        changed += 1
    finish(int8)
    drop_unused_values(int8)
    return changed


def _is_batch_norm(node: Node) -> bool:
    """Whether it is the sum of the multiply-add that a lone batch norm became."""
    return node.target == aten.add.Tensor and IN_FLOAT in node.meta and is_image(node)


def is_image(node: Node) -> bool:
    """Whether it gives (N, C, H, W), which a convolution takes; behind a linear layer there is no place to be at."""
    return node.meta["val"].dim() == IMAGE_RANK


def _channels(node: Node) -> int:
    return node.meta["val"].shape[1]


def _slopes(int8: GraphModule, node: Node) -> Tensor | None:
    """Of each channel; None of a batch norm."""
    return stored(int8, input_of(node, 1)).expand(_channels(node)) if node.target == PRELU else None


def _affine(int8: GraphModule, node: Node, channels: int) -> _Affine:
    """What a node computes by channel of what: x itself, where it is no batch norm."""
    if not _is_batch_norm(node):
        return _Affine(node, torch.ones(channels), torch.zeros(channels))
    product = input_of(node)
    factor, shift = (stored(int8, input_of(each, 1)).reshape(-1).expand(channels) for each in (product, node))
    return _Affine(input_of(product), factor, shift)


def _use_codes(int8: GraphModule, node: Node, affine: _Affine, slopes: Tensor | None) -> None:
    (quantized,) = node.users
    grid = tuple(quantized.args[1:])
    with int8.graph.inserting_before(quantized):
        if slopes is None:
            result = _convolved(int8, affine, quantized, grid)
        else:
            scale, _, smallest, largest, dtype = grid
            above, below = ((scale, zero_point, smallest, largest, dtype) for zero_point in (smallest, largest))
            positive = _convolved(int8, affine, quantized, above), above
            if (slopes < 0).any():
                rising = _convolved(int8, affine.times(slopes.clamp(max=0)), quantized, above), above
                positive = _sum(positive, rising, above, node), above
            falling = _convolved(int8, affine.times(slopes.clamp(min=0)), quantized, below), below
            result = _sum(positive, falling, grid, node)
    quantized.replace_all_uses_with(result)
    int8.graph.erase_node(quantized)


def _sum(one: tuple[Node, Grid], other: tuple[Node, Grid], grid: Grid, node: Node) -> Node:
    """The codes on a grid of the sum of two values, codes on grids of their own, in the place of `node`."""
    graph = node.graph
    values = tuple(graph.call_function(DEQUANTIZE, (codes, *own)) for codes, own in (one, other))
    total = graph.call_function(aten.add.Tensor, values)
    for each in (*values, total):
        each.meta["val"] = node.meta["val"]
    return graph.call_function(QUANTIZE, (total, *grid))


def _convolved(int8: GraphModule, affine: _Affine, quantized: Node, grid: Grid) -> Node:
    """The codes, on `grid`, of a factor and a shift for each channel, in the place of `quantized`."""
    factor, shift, source = affine.factor, affine.shift, affine.source
    graph, step, named_after = int8.graph, setting_of(source, 1), input_of(quantized).all_input_nodes[-1]
    scales = torch.maximum(factor.abs() / LARGEST_CODE, shift.abs() / (step * LARGEST_BIAS)).clamp(min=SMALLEST_SCALE)
    codes = (factor / scales).round().to(torch.int8).reshape(-1, 1, 1, 1)
    zero_points = torch.zeros(len(scales), dtype=torch.int64)
    values = {"_codes": codes, "_scales": scales, "_zero_points": zero_points, "_shift": shift}
    *of_weights, bias = (store_beside(int8, named_after, each, ending) for ending, each in values.items())
    settings: tuple[Any, ...] = (0, -LARGEST_CODE, LARGEST_CODE, torch.int8)
    weights = graph.call_function(DEQUANTIZE_PER_CHANNEL, (*of_weights, *settings))
    arguments: tuple[Any, ...] = (source, weights, bias, [1, 1], [0, 0], [1, 1], len(codes))
    result = graph.call_function(aten.conv2d.default, arguments)
    result.meta = dict(input_of(quantized).meta)
    return graph.call_function(QUANTIZE, (result, *grid))


def _use_vectors(int8: GraphModule, node: Node, slopes: Tensor) -> None:
    """max(x, a x), or of steep slopes max(x, 0) + a min(x, 0), in float."""
    x = input_of(node)
    shape = (-1, *[1] * (node.meta["val"].dim() - 2))
    with int8.graph.inserting_before(node):
        factors = store_beside(int8, input_of(node, 1), slopes.reshape(shape), "_factors")
        if slopes.max() > 1:
            negative = int8.graph.call_function(aten.clamp.default, (x, None, 0.0))
            negative.meta = {**node.meta, IN_FLOAT: ""}
            product = int8.graph.call_function(aten.mul.Tensor, (negative, factors))
            positive = int8.graph.call_function(aten.relu.default, (x,))
            positive.meta = {**node.meta, IN_FLOAT: ""}
            result = int8.graph.call_function(aten.add.Tensor, (positive, product))
        else:
            product = int8.graph.call_function(aten.mul.Tensor, (x, factors))
            result = int8.graph.call_function(aten.maximum.default, (x, product))
    product.meta, result.meta = {**node.meta, IN_FLOAT: "prelu"}, {**node.meta, IN_FLOAT: ""}
    node.replace_all_uses_with(result)
    int8.graph.erase_node(node)
