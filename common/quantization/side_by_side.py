"""A graph computed node by node for many images at once, so that what a node computes can be changed on the way."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

Values = dict[Node, Any]  # what the nodes that are still needed gave, of one batch


class NodeByNode:
    """Values of a graph for some batches of images (N, C, H, W), as far as it was computed, node by node.

    Attributes:
        values: of each batch; a value is dropped behind the last node that takes it.
    """

    def __init__(self, graph: GraphModule, batches: Sequence[Tensor]):
        self.interpreter = Interpreter(graph)
        self.nodes = list(graph.graph.nodes)
        self.batches = batches
        self.values: list[Values] = [{} for _ in batches]
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        self._dropped: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self._dropped.setdefault(node, []).append(source)

    def compute(self, node: Node) -> None:
        """The next node, of every batch."""
        for images, values in zip(self.batches, self.values, strict=True):
            if node.op == "placeholder":
                values[node] = images
            elif node.op != "output":
                self.interpreter.env = values
                values[node] = self.interpreter.run_node(node)
            for source in self._dropped.get(node, ()):
                values.pop(source, None)

    def until(self, wanted: Callable[[Node], bool]) -> Iterator[Node]:
        """Compute all nodes; stops behind each that is `wanted`, whose values may be changed then."""
        for node in self.nodes:
            self.compute(node)
            if wanted(node):
                yield node
