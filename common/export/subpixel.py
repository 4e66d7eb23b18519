"""Transposed convolutions as convolutions whose channels become pixels, for runtimes that are slow at the former.

ONNX Runtime has no int8 kernel for a transposed convolution, XNNPACK none with an int8 dot product, and in float a
convolution is faster, too. With stride 2 one of 4x4 (padding 1) is a convolution of 2x2 on the small map: position i of
its input reaches pixels 2i + k - 1 with tap k, so pixel 2j + q - 1 is K[q] x[j] + K[q + 2] x[j - 1], for q = 0 and 1.
One of 2x2 (no padding) is a convolution of 1x1. Either has four times the channels, one group for each of 2x2 pixels,
which are shuffled to their places (sub-pixel convolution; Shi et al., 2016). The sums are the same, so on int8 codes
the result is the same in every bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from common.quantization.graphs import (
    TRANSPOSED,
    drop_unused_values,
    export_graph,
    finish,
    store_beside,
    stored,
    with_relu,
)
from common.quantization.nodes import input_of, operator_of, setting_of
from common.quantization.pt2e import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE

aten = torch.ops.aten
PADDINGS = {2: 0, 4: 1}  # of the transposed convolutions that are rewritten, by the size of their kernels
AT_ONCE = 16  # output channels, or channels of a depthwise convolution, that ONNX Runtime computes in int8
POINTWISE = {aten.add.Tensor, aten.gelu.default}  # what stands between a shuffle and the next convolution
CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
Operation = tuple[Callable, list]  # an operator and what follows its input
Shuffle = Callable[[int, int, int, int], list[Operation]]  # channels, height and width of a group, pixels to crop


def shuffle_rows(channels: int, height: int, width: int, crop: int) -> list[Operation]:
    """(N, 4 C, H, W), channels ordered (row, column, C) -> (N, C, 2 H, 2 W), without `crop` pixels on every side.

    One transpose of long runs between two that ONNX Runtime, whose convolutions work channels-last, cancels.
    """
    return [
        (aten.permute.default, [CHANNELS_LAST]),
        (aten.reshape.default, [[-1, height, width, 2, 2, channels]]),
        (aten.permute.default, [[0, 1, 3, 2, 4, 5]]),
        (aten.reshape.default, [[-1, 2 * height, 2 * width, channels]]),
        *((aten.slice.Tensor, [axis, crop, -crop]) for axis in (1, 2) if crop),
        (aten.permute.default, [CHANNELS_FIRST]),
    ]


def shuffle_planes(channels: int, height: int, width: int, crop: int) -> list[Operation]:
    """The same for XNNPACK, which turns whole tensors around every reshape: one transpose less than by rows.

    A pixel is cropped as a part of its row, in which its channels stand together.
    """
    columns = 2 * width * channels  # of a row of pixels
    return [
        (aten.reshape.default, [[-1, 2, 2, channels, height, width]]),
        (aten.permute.default, [[0, 4, 1, 5, 2, 3]]),
        (aten.reshape.default, [[-1, 2 * height, columns]]),
        *([(aten.slice.Tensor, [1, crop, -crop])] if crop else []),
        *([(aten.slice.Tensor, [2, crop * channels, columns - crop * channels])] if crop else []),
        (aten.reshape.default, [[-1, 2 * (height - crop), 2 * (width - crop), channels]]),
        (aten.permute.default, [CHANNELS_FIRST]),
    ]


def with_subpixel_convolutions(model: nn.Module, input_shape: tuple[int, int, int]) -> GraphModule:
    """The operators of a float network (N, *input_shape) -> ..., rewritten for ONNX Runtime; `model` stays as it is."""
    graph = export_graph(model, input_shape)
    use_subpixel_convolutions(graph, shuffle_rows)
    keep_channels_last(graph)
    return graph


@torch.no_grad()
def use_subpixel_convolutions(graph: GraphModule, shuffle: Shuffle) -> int:
    """Rewrite every transposed convolution that has this form, float or int8, in place; returns how many.

    The graph's images are of one size, as it was exported.
    """
    changed = 0
    for node in list(graph.graph.nodes):
        if node.target == TRANSPOSED and is_subpixel(graph, node):
            _rewrite(graph, node, shuffle)
            changed += 1
    finish(graph)
    drop_unused_values(graph)
    return changed


def is_subpixel(graph: GraphModule, node: Node) -> bool:
    height, width = stored(graph, _weight_source(node)).shape[2:]
    if height != width or height not in PADDINGS:
        return False
    left_out = ([1, 1], [0, 0], [0, 0], 1, [1, 1])  # stride, padding, output padding, groups, dilation
    settings = (*node.args[3:], *left_out[len(node.args[3:]) :])
    return settings == ([2, 2], 2 * [PADDINGS[height]], [0, 0], 1, [1, 1])


def _weight_source(node: Node) -> Node:
    """The get_attr of a convolution's weights, dequantized or not."""
    weight = input_of(node, 1)
    return weight if weight.op == "get_attr" else input_of(weight)


def _padding(graph: GraphModule, node: Node) -> int:
    return PADDINGS[stored(graph, _weight_source(node)).shape[2]]


def _rewrite(graph: GraphModule, node: Node, shuffle: Shuffle) -> None:
    padding = _padding(graph, node)
    channels, height, width = node.meta["val"].shape[1:]
    last = with_relu(node)
    quantized = next(iter(last.users))
    pair = quantized.args[1:] if quantized.target == QUANTIZE and len(last.users) == 1 else None
    with graph.graph.inserting_before(node):
        if pair and shuffle is shuffle_rows and not padding and 2 * channels >= AT_ONCE:
            pixels = _joined_rows(graph, node, pair)
        else:
            pixels = _convolved(graph, node, slice(None))
            operations = shuffle(channels, height // 2 + padding, width // 2 + padding, padding)
            pixels = _moved(graph.graph, pixels, operations, pair)
    last.replace_all_uses_with(pixels)
    for each in dict.fromkeys((last, node)):
        graph.graph.erase_node(each)


def _joined_rows(graph: GraphModule, node: Node, pair: tuple) -> Node:
    """The even rows and the odd rows of pixels by a convolution each, joined: whole rows are copied, no single pixels.

    Of a kernel of 1x1 alone, which reads its input as it is.
    """
    channels, height, width = node.meta["val"].shape[1:]
    line = width * channels
    to_rows = [(aten.permute.default, [CHANNELS_LAST]), (aten.reshape.default, [[-1, height // 2, 1, line]])]
    rows = [
        _moved(graph.graph, _convolved(graph, node, half), to_rows, pair)
        for half in (slice(2 * channels), slice(2 * channels, None))
    ]
    joined = graph.graph.call_function(aten.cat.default, ([_through_codes(graph.graph, row, pair) for row in rows], 2))
    to_image = [(aten.reshape.default, [[-1, height, width, channels]]), (aten.permute.default, [CHANNELS_FIRST])]
    return _moved(graph.graph, joined, to_image, pair)


def _moved(graph: Graph, node: Node, operations: Sequence[Operation], pair: tuple | None) -> Node:
    for operator, settings in operations:
        if pair:  # between any two operators, as PT2E leaves them
            node = _through_codes(graph, node, pair)
        node = graph.call_function(operator, (node, *settings))
    return node


def _convolved(graph: GraphModule, node: Node, part: slice) -> Node:
    """The convolution that a transposed one becomes, or a `part` of its output channels, with the ReLU behind it."""
    padding = _padding(graph, node)
    bias = node.args[2]
    if isinstance(bias, Node):
        bias = _store(graph, bias, stored(graph, bias).repeat(4)[part])
    pixels = graph.graph.call_function(
        aten.conv2d.default, (node.args[0], _subpixel_weight(graph, node, part), bias, [1, 1], [padding, padding])
    )
    if with_relu(node) is not node:  # of single values, so that the shuffle can be behind it, where it moves codes
        pixels = graph.graph.call_function(aten.relu.default, (pixels,))
    return pixels


def _through_codes(graph: Graph, node: Node, pair: tuple) -> Node:
    return graph.call_function(DEQUANTIZE, (graph.call_function(QUANTIZE, (node, *pair)), *pair))


def _subpixel_weight(graph: GraphModule, node: Node, part: slice) -> Node:
    """The weights of the convolution, dequantized where those of the transposed one are."""
    source, weight = _weight_source(node), input_of(node, 1)
    own = _store(graph, source, as_subpixel_kernel(stored(graph, source))[part].contiguous())
    if weight.target == DEQUANTIZE_PER_CHANNEL:
        by_channel = (input_of(weight, place) for place in (1, 2))
        scales, zero_points = (_store(graph, each, stored(graph, each).repeat(4)[part]) for each in by_channel)
        settings = (scales, zero_points, 0, *weight.args[4:])  # axis 0
        return graph.graph.call_function(DEQUANTIZE_PER_CHANNEL, (own, *settings))
    return own if weight is source else graph.graph.call_function(operator_of(weight), (own, *weight.args[1:]))


def _store(graph: GraphModule, source: Node, values: Tensor) -> Node:
    return store_beside(graph, source, values, "_subpixel")


def as_subpixel_kernel(kernel: Tensor) -> Tensor:
    """(in, m, k, k) of a transposed convolution -> (4 m, in, k / 2, k / 2), channels ordered (row, column, m)."""
    taps = {2: ([0], [1]), 4: ([2, 0], [3, 1])}[kernel.shape[2]]  # of x[j - 1] and x[j], for pixel q
    pixels = [kernel[:, :, rows][:, :, :, columns].transpose(0, 1) for rows in taps for columns in taps]
    return torch.cat(pixels).contiguous()


def keep_channels_last(graph: GraphModule) -> int:
    """Move the transpose behind a shuffle past sums and activations, to the next convolution; returns how many moved.

    There ONNX Runtime's blocked float kernels take either order of channels as they are. In front of a sum it would be
    a pass over the whole tensor. int8 graphs need no such help: ONNX Runtime moves transposes itself there.
    """
    moved = 0
    for node in list(graph.graph.nodes):
        tensors = [each for each in node.args if isinstance(each, Node)]
        if node.target in POINTWISE and any(_is_permute(each, CHANNELS_FIRST) for each in tensors):
            with graph.graph.inserting_before(node):
                turned = graph.graph.node_copy(node, lambda each: _channels_last(graph.graph, each))
                back = graph.graph.call_function(aten.permute.default, (turned, CHANNELS_FIRST))
            node.replace_all_uses_with(back)
            moved += 1
    finish(graph)
    return moved


def _is_permute(node: Node, order: list[int]) -> bool:
    return node.target == aten.permute.default and list(setting_of(node, 1)) == order


def _channels_last(graph: Graph, node: Node) -> Node:
    if _is_permute(node, CHANNELS_FIRST):
        return input_of(node)
    return graph.call_function(aten.permute.default, (node, CHANNELS_LAST))
