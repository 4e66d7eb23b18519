"""Exported graphs: how they are made, and what every rewrite of one needs."""

import operator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from common.system.failures import is_out_of_memory
from common.system.user_code import line_of, told

aten = torch.ops.aten
# operators with weights: (input, weight, bias, ...)
WEIGHTED = {aten.conv1d.default, aten.conv2d.default, aten.linear.default, aten.conv_transpose2d.input}
WITH_WEIGHTS = {
    *WEIGHTED,
    *(aten.conv3d.default, aten.conv_transpose1d.default, aten.conv_transpose3d.input, aten.batch_norm.default),
}
FEATURE_DROPOUT = {
    aten.feature_dropout.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.dropout_.default,
}
DRAWS = {aten.bernoulli.p, aten.bernoulli.default, aten.bernoulli_.float, aten.bernoulli_.Tensor}
PRODUCTS, QUOTIENTS = (
    {aten.mul.Tensor, aten.mul_.Tensor},
    {aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar},
)
VIEWS = {
    *(aten.slice.Tensor, aten.select.int, aten.view.default, aten.reshape.default, aten.permute.default),
    *(aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default, aten.expand.default, aten.flatten.using_ints),
    *(aten.narrow.default, aten.diagonal.default, operator.getitem),
}
REWRITE = "write that line with operators on whole tensors, or leave it out of forward; see docs/own_network.md"
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
        raise ValueError(f"torch.export cannot follow the network: {told(error)}; {REWRITE}") from error
    settle_writes(graph)
    use_plain_padding(graph)
    graph.training = model.training  # of no meaning to an exported graph, which refuses eval(); exporters ask for it
    return graph


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
        source = node.args[0]
        if source.target in VIEWS or any(user.target in VIEWS and order[user] < order[node] for user in source.users):
            base, views = source, {source}
            while base.target in VIEWS:
                base = base.args[0]
                views |= {base, *(user for user in base.users if user.target in VIEWS)}
            later = {user for view in views for user in view.users if order[user] > order[node]} - {node}
            if later:
                place = line_of(node.meta.get("stack_trace") or "") or node.name
                raise ValueError(f"a part of a tensor is written to, which has no form in a graph ({place}); {REWRITE}")
        for user in [user for user in source.users if order[user] > order[node]]:
            user.replace_input_with(source, node)
    graph.recompile()


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
        x, weight = node.args[:2]
        bias, stride, padding, dilation, groups = (
            *node.args[2:],
            *(None, [1, 1], "valid", [1, 1], 1)[len(node.args) - 2 :],
        )
        total = [0, 0]
        if padding == "same":
            total = [step * (size - 1) for step, size in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
        with graph.graph.inserting_before(node):
            if total[0] % 2 or total[1] % 2:
                x = graph.graph.call_function(aten.pad.default, (x, [0, total[1] % 2, 0, total[0] % 2]))
                x.meta = {**node.meta, "val": aten.pad.default(node.args[0].meta["val"], x.args[1])}
            arguments = (x, weight, bias, stride, [each // 2 for each in total], dilation, groups)
            plain = graph.graph.call_function(aten.conv2d.default, arguments)
        plain.meta = {**node.meta}
        node.replace_all_uses_with(plain)
        graph.graph.erase_node(node)
    graph.recompile()
    return len(named)


def unshare_weights(graph: GraphModule) -> int:
    """Give every call of a module that is called several times weights of its own, in place; returns how many it made.

    Quantization works on calls: each has an input of its own range, and a batch norm that is folded into its weights.
    """
    made = 0
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        users = [user for user in node.users if user.target in WITH_WEIGHTS and node in user.args[1:]]
        for call, user in enumerate(users[1:], start=2):
            owner, _, name = node.target.rpartition(".")
            module, value = graph.get_submodule(owner), stored(graph, node)
            own = f"{name}_call{call}"
            if isinstance(value, nn.Parameter):
                setattr(module, own, nn.Parameter(value.detach().clone()))
            else:
                module.register_buffer(own, value.clone())
            with graph.graph.inserting_after(node):
                copy = graph.graph.get_attr(f"{owner}.{own}" if owner else own)
            copy.meta = {**node.meta}
            user.args = (user.args[0], *(copy if each is node else each for each in user.args[1:]))
            made += 1
    graph.recompile()
    return made


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
        if node.target in PRODUCTS and any(isinstance(each, Node) and _is_drawn(each) for each in node.args):
            (kept,) = [each for each in node.args if not (isinstance(each, Node) and _is_drawn(each))]
            node.replace_all_uses_with(kept)
            graph.graph.erase_node(node)
            changed += 1
    if changed:
        _erase_unused_draws(graph)
    graph.recompile()
    return changed


def _is_drawn(node: Node) -> bool:
    """Whether it is a factor of 0 and 1, or of 0 and 1 / p."""
    while node.target in QUOTIENTS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target in DRAWS


def _erase_unused_draws(graph: GraphModule) -> None:
    for node in reversed(graph.graph.nodes):
        if not node.users and node.target in {*DRAWS, *QUOTIENTS}:  # in place, so that they would count as used
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()


def stored(graph: GraphModule, node: Node) -> Tensor:
    """The parameter or buffer that a get_attr node stands for."""
    return reduce(getattr, node.target.split("."), graph)


def store_beside(graph: GraphModule, source: Node, values: Tensor, ending: str) -> Node:
    """A get_attr of `values`, named after what the get_attr `source` stands for; to be placed by the caller."""
    name = source.target.replace(".", "_") + ending
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
