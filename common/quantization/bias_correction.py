"""Bias correction: the mean error that rounding leaves in the output of a layer is taken out of its bias.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019), in an empirical form.
The error is the layer's own: of its rounded weights and inputs, against itself in float on the same inputs before their
rounding. What errors of other layers cause in it stays, since a layer may make up for them: with the float network's
mean in every layer, the published ESPNet was 2.8 dB farther from its outputs.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.quantization.graphs import WEIGHTED, before_rounding, drop_unused_values, finish, store_beside, stored
from common.quantization.nodes import input_of, operator_of
from common.quantization.side_by_side import NodeByNode
from common.system.progress import progress

BIAS = 2  # its place in the arguments of an operator with weights


@torch.no_grad()
def correct_biases(
    floats: GraphModule, int8: GraphModule, batches: Sequence[Tensor], fixed: Collection[str] = ()
) -> int:
    """Add to every bias, channel by channel, the mean error that the layer makes, in place.

    In the order of the graph: a layer gets its inputs from those that are corrected. Layers without a bias get one.
    Means are over images and places.

    Args:
        floats: the network in float.
        int8: the same converted; an operator with weights has its name from `floats`.
        batches: images (N, C, H, W), all of which are computed side by side.
        fixed: names of operators whose biases stay.

    Returns how many layers were corrected.
    """
    exact = {node.name: node for node in floats.graph.nodes if node.target in WEIGHTED and node.name not in fixed}
    layers = [node for node in int8.graph.nodes if node.target in WEIGHTED and node.name in exact]
    computed = NodeByNode(int8, batches, {node: before_rounding(input_of(node)) for node in layers})
    bar = progress(None, "bias correction", unit="layer", total=len(layers))
    for node in computed.until(layers):
        error = _own_error(floats, exact[node.name], computed, node)
        _add_to_bias(int8, node, error)
        for values in computed.values:
            output = values[node]
            values[node] = output + error.to(output.dtype).reshape(-1, *[1] * (output.dim() - 2))
        bar.update()
    bar.close()
    finish(int8)
    drop_unused_values(int8)
    return len(layers)


def _own_error(floats: GraphModule, exact: Node, computed: NodeByNode, node: Node) -> Tensor:
    """The mean of what a layer gives in float, less what it gives in INT8, by channel (C,), float64."""
    source = before_rounding(input_of(node))
    given = [stored(floats, each) if isinstance(each, Node) else each for each in exact.args[1:]]
    differences = [operator_of(exact)(values[source], *given) - values[node] for values in computed.values]
    return torch.stack([_mean(each) for each in differences]).mean(dim=0)


def _mean(output: Tensor) -> Tensor:
    """(N, C, ...) -> (C,)."""
    return output.double().transpose(0, 1).flatten(1).mean(dim=1)


def _add_to_bias(int8: GraphModule, node: Node, error: Tensor) -> None:
    bias = node.args[BIAS] if len(node.args) > BIAS else None
    if isinstance(bias, Node):
        source, values = bias, stored(int8, bias).double() + error
    else:
        source, values = _codes(input_of(node, 1)), error
    with int8.graph.inserting_before(node):
        own = store_beside(int8, source, values.float(), "_corrected")
    if len(node.args) > BIAS:
        node.update_arg(BIAS, own)
    else:
        node.args = (*node.args, own)


def _codes(weight: Node) -> Node:
    """The get_attr of the weights of a converted layer, behind their dequantize where they are codes."""
    return weight if weight.op == "get_attr" else input_of(weight)
