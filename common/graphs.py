"""What every rewrite of an exported graph needs."""

from functools import reduce

from torch import Tensor
from torch.fx import GraphModule, Node


def stored(graph: GraphModule, node: Node) -> Tensor:
    """The parameter or buffer that a get_attr node stands for."""
    return reduce(getattr, node.target.split("."), graph)


def finish(graph: GraphModule) -> None:
    """Drop what is no longer used, check the graph, and generate its code."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
