"""A converted network once more as a graph that can be simulated: each of its pairs as a module that rounds."""

import copy
from itertools import count

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from common.quantization.graphs import (
    DEQUANTIZE,
    DEQUANTIZE_PER_CHANNEL,
    QUANTIZE,
    WEIGHTED,
    finish,
    store_beside,
    stored,
)
from common.quantization.nodes import input_of, is_output_of, operator_of, setting_of


class Rounding(nn.Module):
    """What a pair of a converted graph does to a tensor."""


class RoundedActivation(Rounding):
    """A tensor of any shape, rounded to the codes of a pair with one scale."""

    def __init__(self, scale: float, zero_point: int, smallest: int, largest: int):
        super().__init__()
        self.grid = (scale, zero_point, smallest, largest)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, *self.grid)


class RoundedWeights(Rounding):
    """The weights that a converted graph stores, in the place of those in float, however they were rounded."""

    rounded: Tensor

    def __init__(self, rounded: Tensor):
        super().__init__()
        self.register_buffer("rounded", rounded)

    def forward(self, exact: Tensor) -> Tensor:
        return self.rounded


def as_prepared(floats: GraphModule, int8: GraphModule) -> GraphModule:
    """A copy of a converted graph whose pairs are modules, as in a graph that is prepared for training.

    Args:
        floats: the network in float, with the weights that are rounded.
        int8: the same converted, as `convert` leaves it; an operator with weights has its name from `floats`.
    """
    prepared = copy.deepcopy(int8)
    originals = {node.name: node for node in floats.graph.nodes}
    numbers = count()
    for node in list(prepared.graph.nodes):
        if node.target == QUANTIZE:
            settings = [setting_of(node, place) for place in range(1, 5)]
            _replace(prepared, node, input_of(node), RoundedActivation(*settings), next(numbers))
        elif node.target in WEIGHTED and node.name in originals and _has_codes(input_of(node, 1)):
            pair, exact = input_of(node, 1), stored(floats, input_of(originals[node.name], 1))
            with prepared.graph.inserting_before(pair):
                weights = store_beside(prepared, input_of(pair), exact.detach().clone(), "_float")
            _replace(prepared, pair, weights, RoundedWeights(_values(prepared, pair)), next(numbers))
    finish(prepared)
    return prepared


def _has_codes(weight: Node) -> bool:
    return is_output_of(weight, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL) and input_of(weight).op == "get_attr"


def _replace(graph: GraphModule, node: Node, source: Node, module: Rounding, number: int) -> None:
    """Put a module that takes `source` in the place of a pair, of which `node` is the quantize, or stored weights."""
    graph.add_module(name := f"rounding_{number}", module)
    with graph.graph.inserting_before(node):
        rounded = graph.graph.call_module(name, (source,))
    rounded.meta = {key: value for key, value in source.meta.items() if key != "nn_module_stack"}
    pairs = [node] if node.target != QUANTIZE else [user for user in node.users if user.target == DEQUANTIZE]
    for pair in pairs:
        pair.replace_all_uses_with(rounded)


@torch.no_grad()
def _values(graph: GraphModule, pair: Node) -> Tensor:
    """The stored weights of a layer as floats."""
    arguments = [stored(graph, each) if isinstance(each, Node) else each for each in pair.args]
    return operator_of(pair)(*arguments)
