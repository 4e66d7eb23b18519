"""Which channels of an exported float graph can take a scale of their own, and what then has to be scaled with them.

A channel may be divided by any number where all that makes it can make it smaller, and all that takes it can take it
larger. Operators that give s f(x) for s x, and those that move or add up values, tie channels to each other; weights
and factors in front and behind take the scale up.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from common.quantization.folding import groups_of
from common.quantization.graphs import RELU, TRANSPOSED
from common.quantization.nodes import input_of, setting_of

aten = torch.ops.aten
CONVOLUTION = aten.conv2d.default  # (input, weight, bias, stride, padding, dilation, groups)
LINEAR = aten.linear.default
SUMS = {aten.add.Tensor, aten.add_.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
# f(s x) = s f(x) for every s > 0, channel by channel
HOMOGENEOUS = {
    *(*RELU, aten.prelu.default, aten.leaky_relu.default, aten.leaky_relu_.default),
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.dropout.default, aten.dropout_.default),
    *(aten.alias.default, aten.clone.default, aten.contiguous.default),
}
FIXED = 0  # the group of all channels that stay as they are
AXIS = 1  # of the channels


@dataclass(frozen=True)
class Layer:
    """Weights, or factors by channel, between channels of two groups.

    Attributes:
        node: the operator that takes them.
        sources: (channels of the input,) groups.
        results: (channels of the output,) groups.
        ins: of each position of the first two axes of the weights, the channel of the input; (C,) of factors.
        outs: the channel of the output.
        bias: the get_attr of what is added, by channel of the output; None without one.
        weighted: it has weights, which are rounded; factors are computed in float.
    """

    node: Node
    sources: np.ndarray
    results: np.ndarray
    ins: np.ndarray
    outs: np.ndarray
    bias: Node | None
    weighted: bool = True


@dataclass
class Channels:
    """Groups of the channels of all tensors of a graph, 0 (FIXED) to `count` - 1, and the layers between them."""

    count: int = 1
    tensors: dict[Node, np.ndarray] = field(default_factory=dict)  # groups of the channels of what a node computes
    layers: list[Layer] = field(default_factory=list)
    shifts: list[tuple[Node, np.ndarray]] = field(default_factory=list)  # constants added, groups of their channels


class Sets:
    """Disjoint sets of channels, joined until their smallest member names them: union-find."""

    def __init__(self) -> None:
        self.parents = [FIXED]

    def new(self, count: int) -> np.ndarray:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def find(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def join(self, some: np.ndarray, others: np.ndarray | int) -> None:
        for one, other in np.broadcast(some, others):
            first, second = sorted((self.find(one), self.find(other)))
            self.parents[second] = first

    def named(self, some: np.ndarray) -> np.ndarray:
        return np.array([self.find(each) for each in some], dtype=np.int64)


def channel_groups(graph: GraphModule, fixed: Collection[str] = ()) -> Channels:
    """The channels of a float graph in evaluation mode without batch norm, in groups that have to have one scale.

    What the operators of the names `fixed` take and give stays as it is.
    """
    sets, found = Sets(), Channels()
    counts: dict[object, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            counts[node.target] = counts.get(node.target, 0) + 1
    shared = {name for name, count in counts.items() if count > 1}  # of a module that is called twice
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            _read(node, sets, found, shared, node.name in fixed)
    numbers = {FIXED: FIXED}
    for groups in (sets.named(each) for each in found.tensors.values()):
        for each in groups:
            numbers.setdefault(int(each), len(numbers))

    def numbered(some: np.ndarray) -> np.ndarray:
        return np.array([numbers.get(int(each), FIXED) for each in sets.named(some)], dtype=np.int64)

    layers = [
        Layer(each.node, numbered(each.sources), numbered(each.results), each.ins, each.outs, each.bias, each.weighted)
        for each in found.layers
    ]
    tensors = {node: numbered(each) for node, each in found.tensors.items()}
    return Channels(len(numbers), tensors, layers, [(node, numbered(each)) for node, each in found.shifts])


def _read(node: Node, sets: Sets, found: Channels, shared: set[object], fixed: bool) -> None:
    """Give the channels of a node's output their groups, and join those that the node ties to each other."""
    size = _channels(node)
    sources = [each for each in node.all_input_nodes if each in found.tensors]
    read = _reader(node, shared) if size and sources and not fixed else None
    if read:
        read(node, sets, found, size)
    else:
        for each in sources:
            sets.join(found.tensors[each], FIXED)
        found.tensors |= {node: np.full(size, FIXED)} if size else {}


def _channels(node: Node) -> int:
    """How many channels a tensor (N, C, H, W) or (N, C) has; 0 for what is none of that."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() not in (2, 4):
        return 0
    return value.shape[AXIS] if isinstance(value.shape[AXIS], int) else 0


def _is_stored(value: object, shared: set[object]) -> bool:
    return isinstance(value, Node) and value.op == "get_attr" and value.target not in shared


def _reader(node: Node, shared: set[object]) -> Callable[[Node, Sets, Channels, int], None] | None:
    """How a node ties channels; None where it does in no way that is known here."""
    target, args = node.target, node.args
    stored = [_is_stored(each, shared) for each in args]
    if target in HOMOGENEOUS:
        return _same
    if target == aten.cat.default and (len(args) > 1 and args[1] == AXIS):
        return _joined
    if target in (CONVOLUTION, TRANSPOSED, LINEAR):
        has_bias = len(args) > 2 and args[2] is not None
        return _weighted if stored[1] and (not has_bias or stored[2]) and _by_channel(input_of(node)) else None
    if target in SUMS and not node.kwargs:
        return _sum if _same_shape(node) else _shifted if stored[1] and _by_channel(node, input_of(node, 1)) else None
    if target in PRODUCTS:
        return _factors if stored[1] and _by_channel(node, input_of(node, 1)) else None
    return None


def _by_channel(node: Node, constant: Node | None = None) -> bool:
    """Whether the channels of a tensor, and of a constant (C, 1, 1) for it, are on the axis that is known here."""
    value = node.meta.get("val")
    if constant is None:
        return isinstance(value, Tensor) and value.dim() in (2, 4)
    other = constant.meta.get("val")
    return isinstance(value, Tensor) and isinstance(other, Tensor) and tuple(other.shape) == (value.shape[AXIS], 1, 1)


def _same_shape(node: Node) -> bool:
    values = [each.meta.get("val") for each in node.args[:2] if isinstance(each, Node) and each.op != "get_attr"]
    shapes = [each.shape for each in values if isinstance(each, Tensor)]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _same(node: Node, sets: Sets, found: Channels, size: int) -> None:
    found.tensors[node] = found.tensors[input_of(node)]


def _sum(node: Node, sets: Sets, found: Channels, size: int) -> None:
    first, second = (found.tensors[input_of(node, place)] for place in range(2))
    sets.join(first, second)
    found.tensors[node] = first


def _joined(node: Node, sets: Sets, found: Channels, size: int) -> None:
    parts: Sequence[Node] = setting_of(node, 0)
    found.tensors[node] = np.concatenate([found.tensors[each] for each in parts])


def _shifted(node: Node, sets: Sets, found: Channels, size: int) -> None:
    found.tensors[node] = found.tensors[input_of(node)]
    found.shifts.append((node, found.tensors[node]))


def _factors(node: Node, sets: Sets, found: Channels, size: int) -> None:
    found.tensors[node] = sets.new(size)
    each = np.arange(size)
    found.layers.append(Layer(node, found.tensors[input_of(node)], found.tensors[node], each, each, None, False))


def _weighted(node: Node, sets: Sets, found: Channels, size: int) -> None:
    found.tensors[node] = sets.new(size)
    weight = input_of(node, 1).meta["val"]
    first, second = weight.shape[:2]
    transposed = node.target == TRANSPOSED
    groups = 1 if node.target == LINEAR else groups_of(node)
    rows = np.arange(first)[:, None]
    columns = np.arange(second) + rows // (first // groups) * second  # the second axis counts within a group
    rows = np.broadcast_to(rows, columns.shape)
    ins, outs = (rows, columns) if transposed else (columns, rows)
    bias = input_of(node, 2) if len(node.args) > 2 and node.args[2] is not None else None
    found.layers.append(Layer(node, found.tensors[input_of(node)], found.tensors[node], ins, outs, bias))
