"""Exported graphs: how they are made, and what every rewrite of one needs."""

from itertools import count
from operator import attrgetter

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of pairs
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from common.quantization.nodes import input_of, is_output_of, name_of
from common.quantization.rewrites import REWRITE, settle_writes, use_plain_padding, use_pools
from common.system.failures import is_out_of_memory
from common.system.user_code import one_line

aten = torch.ops.aten
TRANSPOSED = aten.conv_transpose2d.input
# operators with weights: (input, weight, bias, ...)
WEIGHTED = {aten.conv1d.default, aten.conv2d.default, aten.linear.default, TRANSPOSED}
PRELU = aten.prelu.default  # (input, slopes)
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default  # (x, scale, zero point, min, max, dtype)
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default  # the same with codes for x
DEQUANTIZE_PER_CHANNEL = (
    torch.ops.quantized_decomposed.dequantize_per_channel.default
)  # (codes, scales, zero points, ...)
RELU = {aten.relu.default, aten.relu_.default}
LARGEST_BATCH = 65536  # the bound of the exported batch axis; any number that no machine reaches


def export_graph(model: nn.Module, input_shape: tuple[int, int, int]) -> GraphModule:
    """The operators of `model` for images (N, *input_shape) of any N, in the mode in which it is.

    Raises:
        ValueError: PyTorch cannot follow its code, or it writes into a part of a tensor; names the line.
    """
    device = next(model.parameters()).device
    example = torch.zeros(2, *input_shape, device=device)  # not 1: a batch of one would be taken as a constant
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        graph = torch.export.export(model, (example,), dynamic_shapes=({0: batch},)).module(check_guards=False)
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        if is_out_of_memory(error):
            raise
        raise ValueError(f"torch.export cannot follow the network: {one_line(error)}; {REWRITE}") from error
    settle_writes(graph)
    use_plain_padding(graph)
    use_pools(graph)
    graph.training = model.training  # of no meaning to an exported graph, which refuses eval(); exporters ask for it
    separate_uses(graph)
    return graph


def separate_uses(graph: GraphModule) -> None:
    """Give every operator that reads a parameter or buffer a node of its own for it, in place.

    A module that is called twice, as a backbone for two images, has two operators on one node: quantizers take the
    second for done, and leave it in float.
    """
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        for user in list(node.users)[1:]:
            with graph.graph.inserting_before(user):
                own = graph.graph.get_attr(node.target)
            own.meta = dict(node.meta)
            user.replace_input_with(node, own)
    graph.recompile()


def with_relu(node: Node) -> Node:
    """The ReLU that is all that takes a node, or the node itself: where a runtime rounds to codes."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in RELU else node


def before_rounding(node: Node) -> Node:
    """What a pair rounds; any other node itself."""
    while is_output_of(node, QUANTIZE, DEQUANTIZE):
        node = input_of(node)
    return node


def computes_on_codes(node: Node) -> bool:
    """Whether an operator with weights takes codes, or is kept in float."""
    return all(is_output_of(each, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL) for each in node.args[:2])


def bias_of(node: Node) -> Node | None:
    """The get_attr of the bias of an operator with weights, where it has one."""
    return input_of(node, 2) if len(node.args) > 2 and node.args[2] is not None else None


def is_dequantized_weight(node: Node) -> bool:
    """Whether it gives the values of codes that a converted graph stores."""
    return node.target in (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL) and input_of(node).op == "get_attr"


def stored(graph: GraphModule, node: Node) -> Tensor:
    """The parameter or buffer that a get_attr node stands for."""
    values = attrgetter(name_of(node))(graph)
    assert isinstance(values, Tensor)
    return values


def store_beside(graph: GraphModule, source: Node, values: Tensor, ending: str) -> Node:
    """A get_attr of `values`, named after what the get_attr `source` stands for; to be placed by the caller.

    A module that is called twice gives its name to two: the second is numbered.
    """
    first = name_of(source).replace(".", "_") + ending
    name = next(
        each for number in count(1) if not hasattr(graph, each := first if number == 1 else f"{first}_{number}")
    )
    graph.register_buffer(name, values)
    node = graph.graph.get_attr(name)
    if "val" in source.meta:  # a shape without numbers, by which quantizers decide
        node.meta["val"] = source.meta["val"].new_empty(values.shape)
    return node


def finish(graph: GraphModule) -> None:
    """Drop what is no longer used, check the graph, and generate its code."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def drop_unused_values(graph: GraphModule) -> None:
    """Take away the parameters and buffers that no operator of a graph without modules reads.

    They would be written to a file beside those that took their place.
    """
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {*dict(graph.named_parameters()), *dict(graph.named_buffers())} - used:
        owner, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(owner), attribute)
