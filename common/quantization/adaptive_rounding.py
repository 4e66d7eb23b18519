"""AdaRound: for every weight it is learned whether it is rounded up or down, block by block, on images without labels.

Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (ICML 2020). A weight w of scale s becomes
s (floor(w / s) + h(v)), where h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1) is learned, and drawn to 0 or 1 by the term
sum 1 - |2 h - 1|^beta, whose beta falls from 20 to 2. A block takes what the INT8 network before it gives, and should
give what the float network gives (asymmetric reconstruction); its activations are rounded while it learns.

The term counts in units of the error of rounding to the nearest: the error at the start is that of weights that are not
rounded, which says nothing of what a choice costs. A block that did not learn better keeps the nearest.
"""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from common.quantization.graphs import (
    DEQUANTIZE,
    DEQUANTIZE_PER_CHANNEL,
    QUANTIZE,
    WEIGHTED,
    before_rounding,
    is_dequantized_weight,
    stored,
)
from common.quantization.nodes import input_of, setting_of
from common.quantization.side_by_side import NodeByNode, Values
from common.system.progress import progress

logger = logging.getLogger(__name__)

STEPS, RATE = 150, 0.1  # of each block
AT_ONCE = 2  # batches of one step
PULL = 3.0  # what choices of which none is made cost, in errors of rounding to the nearest
WARM_UP = 0.2  # share of the steps before weights are drawn to one side
FEW, MANY = 3, 8  # layers with weights of a block, where the graph is narrow; at most
STRETCH = 1.2, -0.1  # of the sigmoid, so that it reaches 0 and 1
SHARPEST, FLATTEST = 20.0, 2.0  # beta


@dataclass
class _Rounding:
    """The weights of one layer while it is learned how they are rounded."""

    codes: Tensor  # what the converted graph holds, int8; the result goes there
    scale: Tensor  # broadcasts over the codes
    floor: Tensor
    choice: Tensor  # v
    ends: tuple[int, int]

    def up(self) -> Tensor:
        """h, 0 to 1."""
        return (torch.sigmoid(self.choice) * STRETCH[0] + STRETCH[1]).clamp(0, 1)

    def soft(self) -> Tensor:
        """The weights, between two codes."""
        return (self.floor + self.up()).clamp(*self.ends) * self.scale

    def pull(self, beta: float) -> Tensor:
        """How far the choices are from being made."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    def settle(self) -> int:
        """Store the codes of the choices; returns how many differ from before."""
        chosen = (self.floor + (self.up() >= 0.5)).clamp(*self.ends).to(self.codes.dtype)
        changed = int((chosen != self.codes).sum())
        self.codes.copy_(chosen)
        return changed


def learn_rounding(
    floats: GraphModule, int8: GraphModule, batches: Sequence[Tensor], seconds: float, fixed: Collection[str] = ()
) -> int:
    """Learn the rounding of all weights of a converted graph, in place, until `seconds` are over.

    Args:
        floats: the network in float, with the weights that are rounded.
        int8: the same converted; operators have their names from `floats`.
        batches: images (N, C, H, W), on the device of the graphs.
        fixed: names of operators whose weights stay rounded to the nearest.

    Returns how many weights are rounded to the other side than the nearest. Blocks that there was no time for stay as
    they are, which the log says.
    """
    end = time.monotonic() + seconds
    originals = {node.name: node for node in floats.graph.nodes}
    inner, outer = NodeByNode(int8, batches), NodeByNode(floats, batches)
    exact = _Exact(outer, originals)
    blocks = _blocks(inner.nodes)
    changed = 0
    for number, block in enumerate(progress(blocks, "learned rounding", unit="block")):
        layers = [node for node in block if node.target in WEIGHTED and node.name in originals.keys() - set(fixed)]
        roundings = {
            input_of(node, 1): rounding for node in layers if (rounding := _rounding(floats, int8, node, originals))
        }
        results = [node for node in block if _is_used_after(node, set(block)) and _is_tensor(originals, node)]
        if roundings and results:
            goals = {node: exact.values(before_rounding(node).name) for node in results}
            left = (end - time.monotonic()) / (len(blocks) - number)
            learning = _Block(int8, block, roundings)
            changed += _learn(learning, _Lesson.of(learning, inner, goals), left)
        with torch.no_grad():
            for node in block:
                inner.compute(node)
    if time.monotonic() >= end:
        logger.info("learned rounding: ended by its time limit of %g s", seconds)
    return changed


class _Exact:
    """Values of the float network, computed as far as they are asked for, in the order of the graph."""

    def __init__(self, computed: NodeByNode, named: dict[str, Node]):
        self.computed, self.named = computed, named
        self.place = 0

    @torch.no_grad()
    def values(self, name: str) -> list[Tensor]:
        """What a node gives for each batch; it and those before it are computed now where they are not yet."""
        node, kept = self.named[name], self.computed
        while not all(node in values for values in kept.values):
            if self.place == len(kept.nodes):
                raise ValueError(f"{name}: its values are dropped already")
            kept.compute(kept.nodes[self.place])
            self.place += 1
        return [values[node] for values in kept.values]


def _blocks(nodes: Sequence[Node]) -> list[list[Node]]:
    """The graph in pieces of FEW to MANY layers with weights, cut where one value alone goes on, else at MANY."""
    last = {source: node for node in nodes for source in node.all_input_nodes}
    alive: set[Node] = set()
    blocks: list[list[Node]] = [[]]
    layers = 0
    for node in nodes:
        blocks[-1].append(node)
        layers += node.target in WEIGHTED
        if node.op in ("call_function", "placeholder") and isinstance(node.meta.get("val"), Tensor | None):
            alive.add(node)
        alive -= {source for source in node.all_input_nodes if last[source] is node}
        values = {each for each in alive if not is_dequantized_weight(each)}
        if (layers >= FEW and len(values) == 1) or layers >= MANY:
            blocks.append([])
            layers = 0
    return [block for block in blocks if block]


def _is_used_after(node: Node, block: set[Node]) -> bool:
    after = any(user not in block or user.op == "output" for user in node.users)
    return node.op == "call_function" and not is_dequantized_weight(node) and after


def _is_tensor(originals: dict[str, Node], node: Node) -> bool:
    """Whether the float network has the same; sizes are numbers."""
    original = originals.get(before_rounding(node).name)
    return original is not None and isinstance(original.meta.get("val"), Tensor)


def _rounding(floats: GraphModule, int8: GraphModule, node: Node, originals: dict[str, Node]) -> _Rounding | None:
    """Of a layer with weights in codes; None where it stays in float."""
    pair = input_of(node, 1)
    if not is_dequantized_weight(pair):
        return None
    codes, weights = stored(int8, input_of(pair)), stored(floats, input_of(originals[node.name], 1)).detach()
    if pair.target == DEQUANTIZE_PER_CHANNEL:
        shape = [1] * weights.dim()
        shape[setting_of(pair, 3)] = -1
        scale, first = stored(int8, input_of(pair, 1)).reshape(shape).to(weights), 4
    else:
        scale, first = torch.tensor(setting_of(pair, 1)).to(weights), 3
    ends = setting_of(pair, first), setting_of(pair, first + 1)
    floor = (weights / scale).floor()
    rest = ((weights / scale - floor - STRETCH[1]) / STRETCH[0]).clamp(1e-4, 1 - 1e-4)
    return _Rounding(codes, scale, floor, torch.logit(rest).requires_grad_(), ends)


class _Block(Interpreter):
    """A piece of a converted graph through which gradients pass, with weights that are being learned."""

    def __init__(self, int8: GraphModule, nodes: Sequence[Node], roundings: dict[Node, _Rounding]):
        super().__init__(int8)
        self.int8, self.nodes, self.roundings = int8, nodes, roundings

    def outputs(self, values: Values, wanted: Sequence[Node]) -> list[Tensor]:
        """What the nodes `wanted` give; `values` are those of the nodes before the block."""
        self.env = dict(values)
        for node in self.nodes:
            if node.op in ("placeholder", "output"):  # the images are among `values`
                continue
            self.env[node] = self._value(node)
        return [self.env[node] for node in wanted]

    def _value(self, node: Node) -> object:
        if node in self.roundings:
            return self.roundings[node].soft()
        if node.target == QUANTIZE:  # as floats, so that a gradient passes
            grid = (setting_of(node, place) for place in range(1, 5))
            return torch.fake_quantize_per_tensor_affine(self.env[input_of(node)], *grid)
        if (
            node.target == DEQUANTIZE
            and not is_dequantized_weight(node)
            and self.env[input_of(node)].is_floating_point()
        ):
            return self.env[input_of(node)]
        return self.run_node(node)


@dataclass(frozen=True)
class _Lesson:
    """What a block is to learn from some images: its outputs in float."""

    inputs: list[Values]  # of the nodes before the block
    goals: dict[Node, list[Tensor]]
    powers: dict[Node, Tensor]  # mean square of each goal

    @classmethod
    def of(cls, block: _Block, before: NodeByNode, goals: dict[Node, list[Tensor]]) -> "_Lesson":
        """That of the float network's values `goals`, from the INT8 network's up to the block."""
        inputs = [dict(values) for values in before.values]
        for node in block.nodes:
            if node.op == "placeholder":
                inputs = [values | {node: images} for values, images in zip(inputs, before.batches, strict=True)]
        powers = {
            node: torch.stack([each.square().mean() for each in found]).mean().clamp(min=1e-20)
            for node, found in goals.items()
        }
        return cls(inputs, goals, powers)

    def error(self, block: _Block, images: Sequence[int]) -> Tensor:
        """The squared error of all outputs, relative to their power, mean over the images of these numbers."""
        total = torch.zeros((), device=next(iter(self.powers.values())).device)
        for index in images:
            outputs = zip(self.goals, block.outputs(self.inputs[index], list(self.goals)), strict=True)
            parts = [(each - self.goals[node][index]).square().mean() / self.powers[node] for node, each in outputs]
            total = total + torch.stack(parts).sum() / len(images)
        return total


def _learn(block: _Block, lesson: _Lesson, seconds: float) -> int:
    """Learn the choices of a block for STEPS steps, or as long as there is time.

    They are stored where they are better than the rounding to the nearest that is there; returns how many differ.
    """
    end = time.monotonic() + seconds
    roundings, every = block.roundings.values(), range(len(lesson.inputs))
    stored_codes = _Block(block.int8, block.nodes, {})
    with torch.no_grad():
        nearest = lesson.error(stored_codes, every)
    size = sum(each.choice.numel() for each in roundings)
    optimizer = torch.optim.Adam([each.choice for each in roundings], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        done = max(step / STEPS, 1 - max(0.0, end - time.monotonic()) / seconds if seconds > 0 else 1.0)
        if done >= 1:
            break
        optimizer.zero_grad()
        error = lesson.error(block, torch.randperm(len(every), generator=generator)[:AT_ONCE].tolist())
        if done > WARM_UP:
            beta = FLATTEST + (SHARPEST - FLATTEST) * (1 - (done - WARM_UP) / (1 - WARM_UP))
            pull = torch.stack([each.pull(beta) for each in roundings]).sum()
            error = error + PULL * nearest * pull / size
        error.backward()
        optimizer.step()
    if not optimizer.state:  # no time for a step
        return 0
    before = [each.codes.clone() for each in roundings]
    changed = sum(each.settle() for each in roundings)
    with torch.no_grad():
        better = bool(lesson.error(stored_codes, every) < nearest)
    if not better:
        for each, codes in zip(roundings, before, strict=True):
            each.codes.copy_(codes)
    return changed if better else 0
