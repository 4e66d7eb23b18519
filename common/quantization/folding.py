"""Batch norm in an exported float graph, in evaluation: part of the convolution before it, or a multiply-add."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.quantization.graphs import drop_unused_values, finish, store_beside, stored
from common.quantization.nodes import input_of, setting_of

aten = torch.ops.aten
BATCH_NORM = aten.batch_norm.default  # (input, weight, bias, mean, variance, training, momentum, eps, cudnn)
CONVOLUTIONS: dict[object, bool] = {
    aten.conv1d.default: False,
    aten.conv2d.default: False,
    aten.conv3d.default: False,
    aten.conv_transpose1d.default: True,
    aten.conv_transpose2d.input: True,
    aten.conv_transpose3d.input: True,
}  # (input, weight, bias, ...) -> whether it is transposed
NO_STATISTICS = (
    "a batch norm without running statistics has no fixed form; build it with track_running_stats=True, or use "
    "GroupNorm or InstanceNorm, which stay in float"
)
EPS = 7  # the place of eps in a batch norm's arguments
GROUPS = 6  # the place of the groups in a convolution's arguments, transposed or not
IN_FLOAT = "quanty_in_float"  # of a node's meta: not to be quantized; what it is called, "" where another one is
NORM = "quanty_norm"  # of the meta of a product, and of the sum behind it: the name of the batch norm that they were


@torch.no_grad()
def fold_exported_batch_norm(graph: GraphModule) -> tuple[int, int]:
    """Take every batch norm out of a float graph in evaluation mode, in place; the outputs stay the same.

    Behind a convolution of its own it becomes part of its weights, which a module that is called twice then has for
    each call. Elsewhere, behind a sum, a concatenation or first of all, it becomes x * scale + shift for each channel,
    which stays in float: in one scale for all channels its factors, which differ by orders, would have few codes.

    Returns how many were folded, and how many became multiply-adds.
    """
    folded, alone = 0, 0
    for norm in [node for node in graph.graph.nodes if node.target == BATCH_NORM]:
        if has_own_convolution(norm):
            _fold(graph, norm)
            folded += 1
        else:
            as_multiply_add(graph, norm)
            alone += 1
    finish(graph)
    drop_unused_values(graph)
    return folded, alone


def has_own_convolution(norm: Node) -> bool:
    """Whether the input is a convolution's that nothing else takes."""
    source = input_of(norm)
    if source.target not in CONVOLUTIONS or len(source.users) != 1 or is_grouped_transposed(source):
        return False
    return input_of(source, 1).op == "get_attr"


def is_grouped_transposed(node: Node) -> bool:
    """Whether it is a transposed convolution in whose weights the output channels are not on one axis."""
    return CONVOLUTIONS.get(node.target, False) and groups_of(node) != 1


def groups_of(convolution: Node) -> int:
    """Into how many groups its channels are divided."""
    return int(setting_of(convolution, GROUPS)) if len(convolution.args) > GROUPS else 1


def _values(graph: GraphModule, norm: Node) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Mean, variance, weight and bias, the latter two 1 and 0 where it has none, and eps."""
    gamma, beta, mean, variance = (stored(graph, each) if isinstance(each, Node) else None for each in norm.args[1:5])
    if mean is None or variance is None:
        raise ValueError(NO_STATISTICS)
    gamma = torch.ones_like(mean) if gamma is None else gamma
    beta = torch.zeros_like(mean) if beta is None else beta
    return mean, variance, gamma, beta, setting_of(norm, EPS)


def _fold(graph: GraphModule, norm: Node) -> None:
    convolution = input_of(norm)
    weight, bias = input_of(convolution, 1), convolution.args[2] if len(convolution.args) > 2 else None
    mean, variance, gamma, beta, eps = _values(graph, norm)
    old_bias = stored(graph, bias) if isinstance(bias, Node) else None
    transposed = CONVOLUTIONS[convolution.target]
    new_weight, new_bias = fuse_conv_bn_weights(
        stored(graph, weight), old_bias, mean, variance, eps, gamma, beta, transposed
    )
    with graph.graph.inserting_before(convolution):
        convolution.update_arg(1, store_beside(graph, weight, new_weight.detach(), "_folded"))
        own_bias = store_beside(graph, weight, new_bias.detach(), "_folded_bias")
    if len(convolution.args) > 2:
        convolution.update_arg(2, own_bias)
    else:
        convolution.args = (*convolution.args[:2], own_bias)
    norm.replace_all_uses_with(convolution)
    graph.graph.erase_node(norm)


def as_multiply_add(graph: GraphModule, norm: Node) -> None:
    """Put x * scale + shift in the place of a batch norm with its running statistics, marked to stay in float."""
    mean, variance, gamma, beta, eps = _values(graph, norm)
    scale = gamma * torch.rsqrt(variance + eps)
    shape = (-1, *[1] * (norm.meta["val"].dim() - 2))
    statistics = input_of(norm, 3)
    with graph.graph.inserting_before(norm):
        factor = store_beside(graph, statistics, scale.reshape(shape), "_scale")
        offset = store_beside(graph, statistics, (beta - mean * scale).reshape(shape), "_shift")
        product = graph.graph.call_function(aten.mul.Tensor, (norm.args[0], factor))
        result = graph.graph.call_function(aten.add.Tensor, (product, offset))
    product.meta = {**norm.meta, IN_FLOAT: "batch_norm", NORM: norm.name}
    result.meta = {**norm.meta, IN_FLOAT: "", NORM: norm.name}
    norm.replace_all_uses_with(result)
    graph.graph.erase_node(norm)
