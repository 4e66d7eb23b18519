"""Batch norm of a graph that was prepared for QAT: its own attributes, and what becomes of it in INT8."""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from common.quantization.folding import (
    BATCH_NORM,
    CONVOLUTIONS,
    EPS,
    NO_STATISTICS,
    as_multiply_add,
    is_grouped_transposed,
)
from common.quantization.graphs import finish, store_beside, stored
from common.quantization.nodes import input_of, is_output_of, name_of, setting_of

aten = torch.ops.aten
ALIAS = aten.alias.default
FACTORS, VARIANCE, MOMENTUM = 1, 4, 6  # places in the arguments of a batch norm
SMALLEST_FACTOR = 1e-6  # of what is normalised, where it was 0: outputs change by less than float32 shows beside others

Attributes = dict[str, tuple[float, float]]  # name of the running variance -> momentum, eps


def batch_norm_attributes(graph: GraphModule) -> Attributes:
    """Momentum and eps of every batch norm of an exported graph; ValueError where one has no running statistics."""
    norms = [node for node in graph.graph.nodes if node.target == BATCH_NORM]
    if any(norm.args[VARIANCE] is None for norm in norms):
        raise ValueError(NO_STATISTICS)
    return {name_of(input_of(norm, VARIANCE)): (setting_of(norm, MOMENTUM), setting_of(norm, EPS)) for norm in norms}


def restore_batch_norm(prepared: GraphModule, attributes: Attributes) -> None:
    """Give every batch norm its own momentum and eps again, in place.

    torchao puts a pattern of its own in the place of a convolution and its batch norm, with PyTorch's defaults.
    """
    for norm in [node for node in prepared.graph.nodes if node.target == BATCH_NORM]:
        momentum, eps = attributes[name_of(input_of(norm, VARIANCE))]
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
                statistics = input_of(norm, VARIANCE)
                constant = torch.full_like(stored(graph, statistics), value)
                with graph.graph.inserting_after(statistics):
                    norm.update_arg(place, store_beside(graph, statistics, constant, name))
        if is_grouped_transposed(source := input_of(norm)):
            with graph.graph.inserting_before(norm):
                apart = graph.graph.call_function(ALIAS, (source,))
            apart.meta = {**source.meta}
            norm.update_arg(0, apart)
    graph.recompile()


@torch.no_grad()
def raise_zero_factors(graph: GraphModule) -> None:
    """Give factors of batch norms that are exactly 0, as sparse training leaves some, SMALLEST_FACTOR, in place.

    What they normalise is divided by them in training.
    """
    for norm in [node for node in graph.graph.nodes if node.target == BATCH_NORM]:
        if norm.args[FACTORS] is not None:
            factors = stored(graph, input_of(norm, FACTORS))
            factors.masked_fill_(factors == 0, SMALLEST_FACTOR)


def join_again(prepared: GraphModule) -> None:
    """Take the aliases of `set_apart` out, in place."""
    for node in [node for node in prepared.graph.nodes if node.target == ALIAS]:
        node.replace_all_uses_with(input_of(node))
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
    source, bias = input_of(norm), None
    if source.target == aten.add.Tensor and is_output_of(source.args[1], aten.reshape.default):
        source, bias = input_of(source), input_of(input_of(source, 1))
    if source.target != aten.div.Tensor or not is_output_of(source.args[0], *CONVOLUTIONS):
        return None
    convolution = input_of(source)
    weight = input_of(convolution, 1)
    quantized = weight if weight.op == "call_module" else None
    scaled = input_of(weight) if quantized else weight
    if scaled.target != aten.mul.Tensor or not is_output_of(scaled.args[1], aten.reshape.default):
        return None
    factor = input_of(input_of(scaled, 1))  # weight / sqrt(variance + eps)
    return _TrainedPattern(convolution, quantized, scaled, bias, input_of(input_of(factor, 1)))


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
    """Give the convolution weights and a bias of its own, which a module that is called twice has for each call."""
    gamma, beta, mean, variance = (stored(prepared, input_of(norm, place)) for place in range(1, VARIANCE + 1))
    weight, reshaped = input_of(pattern.scaled), input_of(pattern.scaled, 1)
    scale = gamma / (variance + setting_of(norm, EPS)).sqrt()
    bias = stored(prepared, pattern.bias) if pattern.bias else 0.0
    with prepared.graph.inserting_after(weight):
        scaled = store_beside(
            prepared, weight, stored(prepared, weight) * scale.reshape(setting_of(reshaped, 1)), "_folded"
        )
        shift = store_beside(prepared, weight, (bias - mean) * scale + beta, "_folded_bias")
    if pattern.quantized:
        pattern.quantized.args = (scaled,)
    else:
        pattern.convolution.update_arg(1, scaled)
    pattern.convolution.update_arg(2, shift)
    norm.replace_all_uses_with(pattern.convolution)
