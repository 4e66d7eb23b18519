"""A graph computed node by node for many images at once, so that what a node computes can be changed on the way."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

Values = dict[Node, Any]  # what the nodes that are still needed gave, of one batch


class NodeByNode:
    """Values of a graph for some batches of images (N, C, H, W), as far as it was computed, node by node.

    Args:
        beside: of some nodes another one, before it, whose values are looked at where it is reached.

    Attributes:
        values: of each batch; a value is dropped behind the last node that takes it, or that it is looked at with.
    """

    def __init__(
        self, graph: GraphModule, batches: Sequence[Tensor], beside: Mapping[Node, Node] = MappingProxyType({})
    ):
        self.interpreter = Interpreter(graph)
        self.nodes = list(graph.graph.nodes)
        self.batches = batches
        self.values: list[Values] = [{} for _ in batches]
        sources = {node: [*node.all_input_nodes, *([beside[node]] if node in beside else [])] for node in self.nodes}
        last = {source: node for node in self.nodes for source in sources[node]}
        self._dropped: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self._dropped.setdefault(node, []).append(source)

    def compute(self, node: Node) -> None:
        """The next node, of every batch."""
        self._compute(node)
        self._drop(node)

    def until(self, wanted: Collection[Node]) -> Iterator[Node]:
        """Compute all nodes; stops at each that is `wanted`, whose values may be changed then, and its inputs read."""
        stops = set(wanted)
        for node in self.nodes:
            self._compute(node)
            if node in stops:
                yield node
            self._drop(node)

    def _compute(self, node: Node) -> None:
        for images, values in zip(self.batches, self.values, strict=True):
            if node.op == "placeholder":
                values[node] = images
            elif node.op != "output":
                self.interpreter.env = values
                values[node] = self.interpreter.run_node(node)

    def _drop(self, node: Node) -> None:
        for values in self.values:
            for source in self._dropped.get(node, ()):
                values.pop(source, None)
