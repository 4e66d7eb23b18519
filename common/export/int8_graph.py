"""Rewrites of a converted INT8 graph, so that a runtime finds int8 arithmetic where PT2E leaves float between pairs.

`convert_pt2e` puts a quantize behind every operator and a dequantize before it, and computes all of them in float. Each
pass here changes the graph in place and keeps what it computes. What is done for which runtime says its row in
`common/runtimes/targets.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.export.channelwise import use_channelwise_forms
from common.export.padded_channels import pad_channels, pad_transposed
from common.export.subpixel import shuffle_planes, shuffle_rows, use_subpixel_convolutions
from common.quantization.graphs import WEIGHTED, bias_of, computes_on_codes, finish, stored
from common.quantization.nodes import input_of, setting_of
from common.quantization.pt2e import DEQUANTIZE, QUANTIZE
from common.runtimes.targets import Target

aten = torch.ops.aten

# Operators that move values and compute none (a maximum is one of its inputs): the same on int8 codes as on floats
MOVES = {
    aten.permute.default,
    aten.reshape.default,
    aten.view.default,
    aten.flatten.using_ints,
    aten.slice.Tensor,
    aten.max_pool2d.default,
    aten.cat.default,
}
SILU_GATES: dict[object, float] = {aten.silu.default: 1.0, aten.silu_.default: 1.0}  # x sigmoid(factor x)
NAMED_GATES: dict[str, dict[object, float]] = {"silu": SILU_GATES, "gelu": {aten.gelu.default: 1.702}}
GATES = {operator: factor for gates in NAMED_GATES.values() for operator, factor in gates.items()}
SHUFFLES = {"rows": shuffle_rows, "planes": shuffle_planes}
GATE_SCALE = 1 / 254  # of 0 to 1; with 1/255 the gate of 0 lies between two codes, where runtimes choose differently


def move_codes(int8: GraphModule) -> int:
    """dequantize -> move -> quantize of one scale becomes the move alone, on codes; returns how many.

    A move in float reads and writes four bytes for every one.
    """
    moved = 0
    for node in list(int8.graph.nodes):
        if node.target in MOVES and _keeps_codes(node):
            for source in _data_inputs(node):
                node.replace_input_with(source, input_of(source))
            for user in list(node.users):
                user.replace_all_uses_with(node)
            moved += 1
    finish(int8)
    return moved


def _data_inputs(node: Node) -> list[Node]:
    """The tensors that a move moves; symbolic sizes among its arguments are none."""
    first = node.args[0]
    tensors = first if isinstance(first, list | tuple) else [first]
    return [each for each in dict.fromkeys(tensors) if isinstance(each, Node)]


def _keeps_codes(node: Node) -> bool:
    pairs = [source for source in _data_inputs(node) if source.target == DEQUANTIZE] + list(node.users)
    settings = {pair.args[1:] for pair in pairs if pair.target in (QUANTIZE, DEQUANTIZE)}
    return (
        len(settings) == 1
        and all(source.target == DEQUANTIZE for source in _data_inputs(node))
        and all(user.target == QUANTIZE for user in node.users)
    )


def use_sigmoid_gates(int8: GraphModule, gates: Mapping = GATES) -> int:
    """SiLU and GELU as x sigmoid(f x), both factors in int8; returns how many. `gates` holds f of each operator.

    ONNX Runtime computes the sigmoid of codes by a table of 256 entries and a product of codes in vectors, where a GELU
    in float needs an error function between a dequantize and a quantize. f x costs nothing: it is the codes of x read
    in another scale. For GELU f = 1.702 (Hendrycks and Gimpel, Gaussian Error Linear Units, 2016), which is never
    further than 0.0204 from it; most activations have steps of that size. SiLU is x sigmoid(x) itself.
    """
    changed = 0
    for node in list(int8.graph.nodes):
        if node.target in gates and input_of(node).target == DEQUANTIZE:
            source = input_of(node)
            codes, _, *settings = source.args
            smallest, largest, dtype = settings[1:]
            scale = setting_of(source, 1) * gates[node.target]
            with int8.graph.inserting_before(node):
                scaled = int8.graph.call_function(DEQUANTIZE, (codes, scale, *settings))
                gate = int8.graph.call_function(aten.sigmoid.default, (scaled,))
                in_codes = (GATE_SCALE, smallest, smallest, largest, dtype)
                gate = int8.graph.call_function(QUANTIZE, (gate, *in_codes))
                gate = int8.graph.call_function(DEQUANTIZE, (gate, *in_codes))
                product = int8.graph.call_function(aten.mul.Tensor, (source, gate))
            node.replace_all_uses_with(product)
            int8.graph.erase_node(node)  # by name: an activation in place counts as used
            changed += 1
    finish(int8)
    return changed


def use_unsigned_activations(int8: GraphModule) -> int:
    """Activations from int8 (-128..127) to uint8 (0..255), every zero point moved by 128; returns how many pairs.

    ONNX Runtime fuses a convolution of signed activations only in some cases (42 of SceneSeg's 100, all of them
    unsigned). Weights are codes stored in the graph, which have a dequantize alone, and stay int8.
    """
    changed = 0
    for node in int8.graph.nodes:
        weights = node.target == DEQUANTIZE and input_of(node).op == "get_attr"
        if node.target in (QUANTIZE, DEQUANTIZE) and not weights and node.args[5] == torch.int8:
            x, scale, zero_point, smallest, largest, _ = node.args
            node.args = (x, scale, zero_point + 128, smallest + 128, largest + 128, torch.uint8)
            changed += node.target == QUANTIZE
    finish(int8)
    return changed


@torch.no_grad()
def round_biases(int8: GraphModule) -> int:
    """Round every bias to a whole number of its integer sum's steps (input scale x weight scale); returns how many.

    Integer kernels do it anyway, when they load a file. Rounded here, PyTorch's INT8 result and theirs differ where a
    float sum falls on the other side of a half, not by the rounding of each bias, which a deep network amplifies.
    """
    rounded = 0
    for node in int8.graph.nodes:
        if node.target in WEIGHTED and computes_on_codes(node) and (bias := bias_of(node)):
            step = _scale(int8, input_of(node)) * _scale(int8, input_of(node, 1))
            values = stored(int8, bias)
            values.copy_((values.double() / step).round() * step)
            rounded += 1
    return rounded


def _scale(int8: GraphModule, pair: Node) -> Tensor:
    """The scale of a dequantize, or the scales of one by channel, in float64."""
    scale = pair.args[1]
    return (stored(int8, scale) if isinstance(scale, Node) else torch.tensor(scale)).double()


Rewrite = Callable[[GraphModule], object]  # of a graph, in place


def passes_of(target: Target) -> tuple[Rewrite, ...]:
    """The passes of a target in their order: none leaves work for one before it."""
    gates = {operator: factor for name in target.gates for operator, factor in NAMED_GATES[name].items()}
    chosen: tuple[tuple[object, Rewrite], ...] = (
        (target.pads_channels and target.shuffle, pad_transposed),
        # makes moves between pairs, and convolutions
        (target.shuffle, partial(use_subpixel_convolutions, shuffle=SHUFFLES.get(target.shuffle or "", shuffle_rows))),
        (target.moves_codes, move_codes),
        (gates, partial(use_sigmoid_gates, gates=gates)),  # makes pairs
        (target.unsigned, use_unsigned_activations),
        (target.channelwise, use_channelwise_forms),
        (target.pads_channels, pad_channels),
        (target.rounds_biases, round_biases),  # of the weights and biases that the file will hold
    )
    return tuple(rewrite for wanted, rewrite in chosen if wanted)


def for_target(int8: GraphModule, target: Target) -> GraphModule:
    """The graph as the kernels of a target want it, in place; activations that are not its gates stay in float."""
    for rewrite in passes_of(target):
        rewrite(int8)
    return int8
