"""Exported graphs of people's networks in the form that all passes know: writing, padding, draws."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from common.quantization.nodes import input_of, is_output_of, setting_of
from common.system.user_code import line_of

aten = torch.ops.aten
FEATURE_DROPOUT = {
    aten.feature_dropout.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.dropout_.default,
}
DRAWS = {aten.bernoulli.p, aten.bernoulli.default, aten.bernoulli_.float, aten.bernoulli_.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
QUOTIENTS = {aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar}
VIEWS = {
    *(aten.slice.Tensor, aten.select.int, aten.view.default, aten.reshape.default, aten.permute.default),
    *(aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default, aten.expand.default, aten.flatten.using_ints),
    *(aten.narrow.default, aten.diagonal.default, operator.getitem),
}
REWRITE = "write that line with operators on whole tensors, or leave it out of forward; see docs/own_network.md"


def settle_writes(graph: GraphModule) -> None:
    """Let what is used after it was written to, as by an activation in place, be the result of the writing, in place.

    Quantization puts operators between a tensor and those that use it, and would separate them.

    Raises:
        ValueError: a part of a tensor is written to, and the whole is used afterwards.
    """
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        if not _writes(node):
            continue
        source = input_of(node)
        if source.target in VIEWS or any(user.target in VIEWS and order[user] < order[node] for user in source.users):
            base, views = source, {source}
            while base.target in VIEWS:
                base = input_of(base)
                views |= {base, *(user for user in base.users if user.target in VIEWS)}
            later = {user for view in views for user in view.users if order[user] > order[node]} - {node}
            if later:
                place = line_of(node.meta.get("stack_trace") or "") or node.name
                raise ValueError(f"a part of a tensor is written to, which has no form in a graph ({place}); {REWRITE}")
        for user in [user for user in source.users if order[user] > order[node]]:
            user.replace_input_with(source, node)
    graph.recompile()


def use_pools(graph: GraphModule) -> int:
    """Let means over the image that keep its axes be average pools, of which there are int8 forms; returns how many.

    Squeeze and excitation is written in both ways.
    """
    means = [node for node in graph.graph.nodes if node.target == aten.mean.dim and _keeps_image(node)]
    for node in means:
        node.target, node.args, node.kwargs = aten.adaptive_avg_pool2d.default, (node.args[0], [1, 1]), {}
    graph.recompile()
    return len(means)


def _keeps_image(mean: Node) -> bool:
    """(N, C, H, W) -> (N, C, 1, 1), in the type that it has."""
    if mean.meta["val"].dim() != 4 or len(mean.args) != 3 or mean.kwargs:
        return False
    return {dim % 4 for dim in setting_of(mean, 1)} == {2, 3}  # the third says to keep the axes


def _writes(node: Node) -> bool:
    """Whether it changes what an operator gave; the counters of batch norms are no such thing."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or not node.args:
        return False
    source = node.args[0]
    return (
        target._schema.is_mutable
        and isinstance(source, Node)
        and source.op == "call_function"
        and target not in (aten.batch_norm.default,)
    )


def use_plain_padding(graph: GraphModule) -> int:
    """Convolutions of padding "same" or "valid" as the usual ones, in place, which all passes know; returns how many.

    An even kernel has one pixel more on the right and below: that is padded before.
    """
    named = [node for node in graph.graph.nodes if node.target == aten.conv2d.padding]
    for node in named:
        x, weight = input_of(node), input_of(node, 1)
        bias, stride, padding, dilation, groups = _conv_settings(node)
        total = [0, 0]
        if padding == "same":
            total = [step * (size - 1) for step, size in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
        with graph.graph.inserting_before(node):
            if total[0] % 2 or total[1] % 2:
                x = graph.graph.call_function(aten.pad.default, (x, [0, total[1] % 2, 0, total[0] % 2]))
                x.meta = {**node.meta, "val": aten.pad.default(input_of(node).meta["val"], x.args[1])}
            arguments = (x, weight, bias, stride, [each // 2 for each in total], dilation, groups)
            plain = graph.graph.call_function(aten.conv2d.default, arguments)
        plain.meta = {**node.meta}
        node.replace_all_uses_with(plain)
        graph.graph.erase_node(node)
    graph.recompile()
    return len(named)


def _conv_settings(node: Node) -> list[Any]:
    """Bias, stride, padding, dilation and groups, also those that the call leaves to their defaults."""
    given = list(node.args[2:])
    return [*given, *[None, [1, 1], "valid", [1, 1], 1][len(given) :]]


def without_random_factors(graph: GraphModule) -> int:
    """Dropout of channels as that of values, and dropped branches as they are without dropping; returns how many.

    The former has no form that could be switched off with the graph's other dropouts. The latter, x * bernoulli(p) / p,
    has none at all: an exported graph would keep drawing it in evaluation.
    """
    changed = 0
    for node in list(graph.graph.nodes):
        if node.target in FEATURE_DROPOUT:
            node.target = FEATURE_DROPOUT[node.target]
            changed += 1
        kept = [each for each in node.all_input_nodes if not _is_drawn(each)]
        if node.target in PRODUCTS and len(kept) == 1 and len(node.all_input_nodes) == 2:
            node.replace_all_uses_with(kept[0])
            graph.graph.erase_node(node)
            changed += 1
    if changed:
        _erase_unused_draws(graph)
    graph.recompile()
    return changed


def _is_drawn(node: Node) -> bool:
    """Whether it is a factor of 0 and 1, or of 0 and 1 / p."""
    while is_output_of(node, *QUOTIENTS):
        node = input_of(node)
    return node.target in DRAWS


def _erase_unused_draws(graph: GraphModule) -> None:
    for node in reversed(graph.graph.nodes):
        if not node.users and node.target in {*DRAWS, *QUOTIENTS}:  # in place, so that they would count as used
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
