"""Bias correction: the mean error that rounding leaves in the output of a layer is taken out of its bias.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019), in its empirical form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from common.quantization.graphs import WEIGHTED, drop_unused_values, finish, store_beside, stored
from common.quantization.nodes import input_of
from common.quantization.side_by_side import NodeByNode
from common.system.progress import progress

BIAS = 2  # its place in the arguments of an operator with weights


@torch.no_grad()
def correct_biases(floats: GraphModule, int8: GraphModule, batches: Sequence[Tensor]) -> int:
    """Add to every bias, channel by channel, the mean of the float output less that of the INT8 output, in place.

    Layer by layer in the order of the graph: the error of a layer is what is left with all before it corrected. Layers
    without a bias get one. Means are over images and places.

    Args:
        floats: the network in float.
        int8: the same converted; an operator with weights has its name from `floats`.
        batches: images (N, C, H, W), all of which are computed side by side.

    Returns how many layers were corrected.
    """
    means = _means(floats, batches)
    corrected = 0
    computed = NodeByNode(int8, batches)
    bar = progress(None, "bias correction", unit="layer", total=len(means))
    for node in computed.until(lambda node: node.target in WEIGHTED and node.name in means):
        outputs = [values[node] for values in computed.values if isinstance(values[node], Tensor)]
        error = means[node.name] - torch.stack([_mean(each) for each in outputs]).mean(dim=0)
        _add_to_bias(int8, node, error)
        for values, output in zip(computed.values, outputs, strict=True):
            values[node] = output + error.to(output.dtype).reshape(-1, *[1] * (output.dim() - 2))
        corrected += 1
        bar.update()
    bar.close()
    finish(int8)
    drop_unused_values(int8)
    return corrected


class _Means(Interpreter):
    """Adds up the mean outputs of the operators with weights, by name."""

    def __init__(self, graph: GraphModule):
        super().__init__(graph)
        self.sums: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> object:
        result = super().run_node(n)
        if n.target in WEIGHTED and isinstance(result, Tensor):
            self.sums[n.name] = self.sums.get(n.name, 0) + _mean(result)
        return result


def _means(floats: GraphModule, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """The mean output of every channel of every operator with weights, float64."""
    interpreter = _Means(floats)
    for images in batches:
        interpreter.run(images)
    return {name: total / len(batches) for name, total in interpreter.sums.items()}


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
