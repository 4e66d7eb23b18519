"""A prepared graph with any of its fake quantizations passed over, and which module each of them belongs to."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import Target

from common.quantization.fake_quantize import FakeQuantize
from common.quantization.graphs import WEIGHTED, finish
from common.quantization.nodes import input_of, name_of
from common.quantization.quantizer import is_rounded_behind
from common.quantization.ranges import ObserverBase
from common.quantization.rounding import Rounding

ROUNDED = (FakeQuantize, Rounding, ObserverBase)  # modules that round a tensor, or observe one that will be rounded
LARGEST_BLOCK = 7  # layers with weights; the context has 7, a residual block of the encoder 5, a stage of the neck 3


class Simulation(Interpreter):
    """Runs a prepared graph; the fake quantizations in `floats` hand on what they get. The graph stays as it is."""

    def __init__(self, prepared: GraphModule, floats: Collection[str] = ()):
        super().__init__(prepared)
        self.floats = floats

    def call_module(self, target: Target, args: tuple, kwargs: dict) -> Tensor:
        return args[0] if target in self.floats else super().call_module(target, args, kwargs)


@dataclass(frozen=True)
class QuantizedLayer:
    """An operator whose output has a range of its own; a batch norm behind a convolution is a part of it."""

    module: str
    operator: str
    weights: str | None  # the fake quantization of its weights
    output: str  # and of its output


def fake_quantizations(prepared: GraphModule) -> dict[str, Node]:
    """Every fake quantization of the graph by its name, or observer; some share a module, and with it a range."""
    modules = [node for node in prepared.graph.nodes if node.op == "call_module"]
    return {name_of(node): node for node in modules if isinstance(prepared.get_submodule(name_of(node)), ROUNDED)}


def module_of(node: Node) -> str | None:
    """The module that a node computes a part of, "" for the network itself; None for inputs, weights and outputs."""
    stack = node.meta.get("nn_module_stack") if node.op == "call_function" else None
    return list(stack.values())[-1][0] if stack else None


def quantized_layers(prepared: GraphModule) -> list[QuantizedLayer]:
    """All in the graph's order. Operators that move values and share their input's range are left out."""
    quantizers = fake_quantizations(prepared)
    weighted = _weighted(prepared, quantizers)
    producers = {_output(node, quantizers): node for node in weighted.values()}
    layers: list[QuantizedLayer] = []
    ranges: set[int] = set()  # ids of modules
    for name, node in quantizers.items():
        shared = id(getattr(prepared, name))
        if name in weighted or shared in ranges:
            continue
        ranges.add(shared)
        producer = producers.get(name, input_of(node))
        weights = name_of(input_of(producer, 1)) if name in producers else None
        layers.append(QuantizedLayer(module_of(producer) or "network", _operator(producer), weights, name))
    return layers


def _operator(node: Node) -> str:
    """aten.silu_.default -> silu."""
    return str(node.target).split(".")[1].rstrip("_") if node.op == "call_function" else "input"


def _weighted(prepared: GraphModule, quantizers: Collection[str]) -> dict[str, Node]:
    """Fake quantization of weights -> the convolution or matrix product that takes them."""
    nodes = (node for node in prepared.graph.nodes if node.target in WEIGHTED)
    return {name_of(input_of(node, 1)): node for node in nodes if input_of(node, 1).target in quantizers}


def _output(node: Node, quantizers: Collection[str]) -> str | None:
    """The fake quantization of what a layer hands on, behind its batch norm; None where that stays in float."""
    while node.target not in quantizers:
        if node.op == "output" or not node.users:
            return None
        node = next((user for user in node.users if user.target in quantizers), next(iter(node.users)))
    return name_of(node)


def blocks_of(prepared: GraphModule) -> dict[str, int]:
    """The largest modules of at most LARGEST_BLOCK quantized layers with weights, with their number of these."""
    modules = map(module_of, _weighted(prepared, fake_quantizations(prepared)).values())
    names = [name for name in modules if name is not None]
    held = Counter(part for name in names for part in _ancestry(name))
    blocks = (next((part for part in _ancestry(name) if held[part] <= LARGEST_BLOCK), name) for name in names)
    return {block: held[block] for block in blocks}


def _ancestry(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def inside(prepared: GraphModule, blocks: Collection[str]) -> set[str]:
    """The fake quantizations that go when the modules `blocks` stay in float.

    They are those of tensors that only the modules take, but for what a neighbour rounds for its own int8 arithmetic.
    What a neighbour takes stays quantized, too. That is so when a network is trained with the modules in float.
    """
    found = set()
    for name, node in fake_quantizations(prepared).items():
        takers, maker = _modules(node.users), _modules([input_of(node)])
        of_neighbour = _is_outside(maker, blocks) and _rounds_its_output(input_of(node))
        if (takers or maker) and not (_is_outside(takers, blocks) or of_neighbour):
            found.add(name)
    return found


def _is_outside(modules: Iterable[str], blocks: Collection[str]) -> bool:
    return any(not any(block in _ancestry(module) for block in blocks) for module in modules)


def _rounds_its_output(node: Node) -> bool:
    """Whether an operator computes in int8, so that its output is in codes: with weights, or as its quantizer said."""
    return is_rounded_behind(node) or any(each.target in WEIGHTED for each in (node, *node.all_input_nodes))


def without_rounding(prepared: GraphModule, floats: Collection[str]) -> GraphModule:
    """A copy of a prepared graph without the fake quantizations or observers in `floats`, to be converted."""
    kept = copy.deepcopy(prepared)
    for node in [node for name, node in fake_quantizations(kept).items() if name in floats]:
        node.replace_all_uses_with(input_of(node))
        kept.graph.erase_node(node)
    kept.delete_all_unused_submodules()
    finish(kept)
    return kept


def of_layer(prepared: GraphModule, layer: QuantizedLayer) -> set[str]:
    """The fake quantizations of its weights and its output, with those that share a range with the latter."""
    output = getattr(prepared, layer.output)
    shared = {name for name in fake_quantizations(prepared) if getattr(prepared, name) is output}
    return shared | ({layer.weights} if layer.weights else set())


def _modules(nodes: Iterable[Node]) -> set[str]:
    """The modules that nodes compute a part of."""
    return {name for name in map(module_of, nodes) if name is not None}
