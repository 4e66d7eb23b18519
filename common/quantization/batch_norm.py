"""Batch norm of a graph that was prepared for QAT: its own attributes, and what becomes of it in INT8."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from common.quantization.folding import BATCH_NORM, CONVOLUTIONS, NO_STATISTICS, as_multiply_add, is_grouped_transposed
from common.quantization.graphs import finish, store_beside, stored

aten = torch.ops.aten
ALIAS = aten.alias.default
VARIANCE, MOMENTUM, EPS = 4, 6, 7  # places in the arguments of a batch norm

Attributes = dict[str, tuple[float, float]]  # name of the running variance -> momentum, eps


def batch_norm_attributes(graph: GraphModule) -> Attributes:
    """Momentum and eps of every batch norm of an exported graph; ValueError where one has no running statistics."""
    norms = [node for node in graph.graph.nodes if node.target == BATCH_NORM]
    if any(norm.args[VARIANCE] is None for norm in norms):
        raise ValueError(NO_STATISTICS)
    return {norm.args[VARIANCE].target: (norm.args[MOMENTUM], norm.args[EPS]) for norm in norms}


def restore_batch_norm(prepared: GraphModule, attributes: Attributes) -> None:
    """Give every batch norm its own momentum and eps again, in place.

    torchao puts a pattern of its own in the place of a convolution and its batch norm, with PyTorch's defaults.
    """
    for norm in [node for node in prepared.graph.nodes if node.target == BATCH_NORM]:
        momentum, eps = attributes[norm.args[VARIANCE].target]
        norm.update_arg(MOMENTUM, momentum)
        norm.update_arg(EPS, eps)
        if pattern := _trained_pattern(norm):
            pattern.variance_and_eps.update_arg(1, eps)
    prepared.recompile()


def set_apart(graph: GraphModule) -> None:
    """Make every batch norm one that torchao can prepare, in place.

    It would take a grouped transposed convolution and its batch norm for a pattern of its own, and fail, since the
    channels of their weights are not on one axis: an alias is put between them. Batch norms that are not affine get
    the factors 1 and offsets 0, which are not trained.
    """
    for norm in [node for node in graph.graph.nodes if node.target == BATCH_NORM]:
        for place, name, value in ((1, "_weight", 1.0), (2, "_bias", 0.0)):
            if norm.args[place] is None:
                statistics = norm.args[VARIANCE]
                constant = torch.full_like(stored(graph, statistics), value)
                with graph.graph.inserting_after(statistics):
                    norm.update_arg(place, store_beside(graph, statistics, constant, name))
        if isinstance(source := norm.args[0], Node) and is_grouped_transposed(source):
            with graph.graph.inserting_before(norm):
                apart = graph.graph.call_function(ALIAS, (source,))
            apart.meta = {**source.meta}
            norm.update_arg(0, apart)
    graph.recompile()


def join_again(prepared: GraphModule) -> None:
    """Take the aliases of `set_apart` out, in place."""
    for node in [node for node in prepared.graph.nodes if node.target == ALIAS]:
        node.replace_all_uses_with(node.args[0])
        prepared.graph.erase_node(node)
    prepared.recompile()


@dataclass(frozen=True)
class _TrainedPattern:
    """conv(x, fake_quantize(w s)) / s, plus the bias, normalised, where s is weight / sqrt(variance + eps)."""

    convolution: Node
    quantized: Node | None  # the fake quantization of the weights, where they have one
    scaled: Node  # the product w s
    bias: Node | None  # the get_attr of the convolution's bias
    variance_and_eps: Node  # their sum


def _trained_pattern(norm: Node) -> _TrainedPattern | None:
    """What torchao makes of a convolution and its batch norm for the training; None for any other batch norm."""
    source, bias = norm.args[0], None
    if source.target == aten.add.Tensor and _is(source.args[1], aten.reshape.default):
        source, bias = source.args[0], source.args[1].args[0]
    if not _is(source, aten.div.Tensor) or not isinstance(source.args[0], Node):
        return None
    convolution = source.args[0]
    if convolution.target not in CONVOLUTIONS:
        return None
    weight = convolution.args[1]
    quantized = weight if weight.op == "call_module" else None
    scaled = weight.args[0] if quantized else weight
    if not _is(scaled, aten.mul.Tensor) or not _is(scaled.args[1], aten.reshape.default):
        return None
    factor = scaled.args[1].args[0]  # weight / sqrt(variance + eps)
    return _TrainedPattern(convolution, quantized, scaled, bias, factor.args[1].args[0])


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target == target


@torch.no_grad()
def fold_batch_norm(prepared: GraphModule) -> tuple[int, int]:
    """Take every batch norm out of a prepared graph, in place, as it is with its running statistics.

    A convolution's, which training computes as in `_TrainedPattern`, is conv(x, fake_quantize(w s)) plus
    (bias - mean) s + batch norm's bias. `convert_pt2e` folds the same, but searches for it with 96 patterns that it
    exports each time, also where no batch norm is a convolution's: 36 of the 38 seconds that it took for SceneSeg. Any
    other batch norm becomes a multiply-add in float.

    Returns how many were folded, and how many became multiply-adds.
    """
    folded, alone = 0, 0
    for norm in [node for node in prepared.graph.nodes if node.target == BATCH_NORM]:
        if pattern := _trained_pattern(norm):
            _fold(prepared, norm, pattern)
            folded += 1
        else:
            as_multiply_add(prepared, norm)
            alone += 1
    for node in reversed(prepared.graph.nodes):
        if node.target == aten.add_.Tensor and not node.users:  # of num_batches_tracked; it would count as used
            prepared.graph.erase_node(node)
    finish(prepared)
    return folded, alone


def _fold(prepared: GraphModule, norm: Node, pattern: _TrainedPattern) -> None:
    _, gamma, beta, mean, variance = norm.args[:5]
    weight, reshaped = pattern.scaled.args
    scale = stored(prepared, gamma) / (stored(prepared, variance) + norm.args[EPS]).sqrt()
    stored(prepared, weight).mul_(scale.reshape(reshaped.args[1]))
    if pattern.quantized:
        pattern.quantized.args = (weight,)
    else:
        pattern.convolution.update_arg(1, weight)
    bias = stored(prepared, pattern.bias) if pattern.bias else 0.0
    shift = (bias - stored(prepared, mean)) * scale + stored(prepared, beta)
    pattern.convolution.update_arg(2, _parameter(prepared, beta, shift))
    norm.replace_all_uses_with(pattern.convolution)


def _parameter(graph: GraphModule, beta: Node, value: Tensor) -> Node:
    """A node for the convolution's bias, which takes the place of batch norm's."""
    owner, _, name = beta.target.rpartition(".")
    setattr(graph.get_submodule(owner), name, nn.Parameter(value))
    return beta
