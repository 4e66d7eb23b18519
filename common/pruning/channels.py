"""Which channels of a network move together: with one of them, what has to be taken away from all weights.

The exported graph says where channels go. What computes each by itself, as activations, batch norm and depthwise
convolutions, hands them on; what joins tensors ties their channels; weights in between make new ones. The network's
inputs and outputs, and all that is not known here, hold theirs: a network then has fewer channels to prune, and never a
form that its code cannot run.
"""

import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from common.networks.channels import weight_axes
from common.quantization.channel_groups import Sets
from common.quantization.folding import BATCH_NORM, CONVOLUTIONS
from common.quantization.graphs import export_graph
from common.quantization.nodes import name_of, setting_of

aten = torch.ops.aten
AXIS = 1  # of the channels of an image (N, C, H, W)
FIXED = 0  # the channel that stands for all that stay
# of each number by itself
POINTWISE = {
    *(aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default),
    *(aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default),
    *(aten.leaky_relu.default, aten.leaky_relu_.default, aten.elu.default, aten.elu_.default),
    *(aten.gelu.default, aten.gelu_.default, aten.silu.default, aten.silu_.default),
    *(aten.mish.default, aten.mish_.default, aten.selu.default, aten.selu_.default, aten.softplus.default),
    *(aten.sigmoid.default, aten.sigmoid_.default, aten.tanh.default, aten.tanh_.default),
    *(aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default),
    *(aten.abs.default, aten.exp.default, aten.neg.default, aten.sqrt.default, aten.pow.Tensor_Scalar),
    *(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default),
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default),
}
# of the image of each channel by itself
OF_IMAGES = {
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec),
    *(aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default),
}
OF_PAIRS = {
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor, aten.maximum.default),
    *(aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor, aten.minimum.default),
}
REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default}  # (input, axes, keepdim)

Place = tuple[str, int]  # a parameter or buffer, and an axis of it


@dataclass(frozen=True, eq=False)
class Block:
    """Channels that are alike: each takes part in the same weights, and any of them may be left out.

    Attributes:
        makers: layers whose weights make the channels.
        takers: layers whose weights take them.
        places: of each axis that has them, the positions of each channel there (channels, 1 or more).
    """

    makers: tuple[str, ...]
    takers: tuple[str, ...]
    places: dict[Place, np.ndarray]

    @property
    def size(self) -> int:
        """How many channels."""
        return len(next(iter(self.places.values())))

    def __str__(self) -> str:
        return " + ".join(self.makers)

    def is_in(self, patterns: Sequence[str]) -> bool:
        """Whether all that makes the channels is in modules of these names, by patterns as in `fnmatch`."""
        return all(any(fnmatch.filter(ancestry(maker), pattern) for pattern in patterns) for maker in self.makers)


def ancestry(module: str) -> list[str]:
    """A module's name and those of the modules that it is in: a, a.b, a.b.c."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def find_blocks(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Block]:
    """All channels of a network in evaluation mode, for inputs (N, *input_shape), that can be left out.

    Raises:
        ValueError: PyTorch cannot follow its code.
    """
    reading = _Reading(model)
    for node in export_graph(model, input_shape).graph.nodes:
        reading.read(node)
    return reading.blocks()


@dataclass
class _Reading:
    """Reads a graph node by node: the channels of each tensor on one axis, and those of each axis of the weights."""

    model: nn.Module
    sets: Sets = field(default_factory=Sets)
    tensors: dict[Node, tuple[int, np.ndarray]] = field(default_factory=dict)
    weights: dict[Place, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    def read(self, node: Node) -> None:
        """Give the channels of what a node computes their names, and tie those that it ties."""
        if node.op == "get_attr":
            return
        target = node.target
        if target in CONVOLUTIONS or target == aten.linear.default:
            self._layer(node)
        elif target == BATCH_NORM or (target == aten.prelu.default and self._size(node.args[1], 0) > 1):
            self._by_channel(node)
        elif (
            target in POINTWISE
            or target == aten.prelu.default
            or target in OF_IMAGES
            and self._axis(node.args[0]) == AXIS
        ):
            self._handed_on(node)
        elif target in OF_PAIRS and len(node.args) > 1:
            self._pair(node)
        elif target == aten.cat.default:
            self._joined(node)
        elif target in REDUCTIONS:
            self._reduced(node)
        elif target in (aten.flatten.using_ints, aten.reshape.default, aten.view.default):
            self._flattened(node)
        else:
            self._held(*node.all_input_nodes)

    def blocks(self) -> list[Block]:
        """The channels that are held by nothing, those of one footprint together, in the order of the layers."""
        positions: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, channels in self.weights.items():
            for position, channel in enumerate(self.sets.named(channels)):
                positions[int(channel)][place].append(position)
        positions.pop(FIXED, None)
        alike: dict[tuple, list[dict[Place, list[int]]]] = defaultdict(list)
        for each in positions.values():
            alike[tuple((place, len(found)) for place, found in each.items())].append(each)
        found = []
        for members in alike.values():
            places = {place: np.array([each[place] for each in members]) for place in members[0]}
            makers, takers = (self._layers(places, end) for end in (1, 0))
            if makers and takers:
                found.append(Block(makers, takers, places))
        order = {name: number for number, name in enumerate(self.modules)}
        return sorted(found, key=lambda block: min(order[each] for each in block.makers))

    def _layers(self, places: dict[Place, np.ndarray], end: int) -> tuple[str, ...]:
        """The layers whose weights have a block's channels on their axis of what goes in (0), or comes out (1)."""
        found = []
        for name, axis in places:
            module, _, key = name.rpartition(".")
            axes = weight_axes(self.modules[module])
            if key == "weight" and axes and axes[0] != axes[1] and axis == axes[end]:
                found.append(module)
        return tuple(found)

    def _place(self, value: Node, axis: int) -> np.ndarray:
        """The channels on an axis of a stored tensor: of a layer that can have others, or held."""
        place, size = (name_of(value), axis), self._size(value, axis)
        if place not in self.weights:
            self.weights[place] = self.sets.new(size) if self._axes(value) else np.full(size, FIXED)
        return self.weights[place]

    def _axes(self, value: object) -> tuple[int, int] | None:
        """`weight_axes` of the layer that has a stored tensor; None where it is none's."""
        module = self.modules.get(name_of(value).rpartition(".")[0]) if _is_stored(value) else None
        return weight_axes(module) if module else None

    def _layer(self, node: Node) -> None:
        source, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
        axis = AXIS if node.target in CONVOLUTIONS else self._dim(node) - 1
        axes = self._axes(weight)
        if not _is_stored(weight) or axes is None or (bias is not None and not _is_stored(bias)):
            self._held(*node.all_input_nodes)
            return
        ins, outs = (self._place(weight, each) for each in axes)
        self.sets.join(ins, self._channels(source, axis))
        if bias is not None:
            self.sets.join(outs, self._place(bias, 0))
        self.tensors[node] = axis, outs

    def _by_channel(self, node: Node) -> None:
        channels = self._channels(node.args[0], AXIS)
        for value in node.args[1:5]:
            if _is_stored(value):
                self.sets.join(channels, self._place(value, 0))
        self.tensors[node] = AXIS, channels

    def _handed_on(self, node: Node) -> None:
        if known := self._known(node.args[0]):
            self.tensors[node] = known

    def _pair(self, node: Node) -> None:
        """Axes are counted from the last one, as broadcasting does."""
        pair = [each for each in node.args[:2] if isinstance(each, Node)]
        known = [self._dim(each) - axis for each in pair if (axis := self._axis(each)) is not None]
        if not known:
            self._held(*pair)
            return
        axis = self._dim(node) - known[0]
        found = [self._channels(each, self._dim(each) - known[0]) for each in pair]
        widest = max(found, key=len)
        for each in found:
            self.sets.join(each, widest if len(each) == len(widest) else FIXED)
        self.tensors[node] = axis, widest

    def _joined(self, node: Node) -> None:
        parts: Sequence[Node] = setting_of(node, 0)
        along = setting_of(node, 1) % self._dim(node) if len(node.args) > 1 else 0
        axis = next((axis for each in parts if (axis := self._axis(each)) is not None), None)
        if axis is None:
            return
        found = [self._channels(each, axis) for each in parts]
        if along != axis:
            for each in found:
                self.sets.join(each, found[0])
        self.tensors[node] = axis, np.concatenate(found) if along == axis else found[0]

    def _reduced(self, node: Node) -> None:
        """Over axes that are said; that of the channels has to stay."""
        source, known = node.args[0], self._known(node.args[0])
        given = node.args[1] if len(node.args) > 1 else None
        axes = {each % self._dim(source) for each in given} if isinstance(given, list | tuple) else set()
        if known is None or not axes or known[0] in axes:
            self._held(source)
            return
        keeps = len(node.args) > 2 and node.args[2]
        self.tensors[node] = known[0] - (0 if keeps else sum(each < known[0] for each in axes)), known[1]

    def _flattened(self, node: Node) -> None:
        """(N, C, ...) as (N, all the rest): each channel then has several places, one after the other."""
        known, shape = self._known(node.args[0]), _shape(node.args[0])
        sizes = node.args[1] if node.target != aten.flatten.using_ints and len(node.args) > 1 else (-1,)
        says_rest = isinstance(sizes, list | tuple) and sizes[-1] == -1  # no number that the code would hold to
        whole = all(isinstance(each, int) for each in shape[1:]) and _shape(node)[1:] == (prod(shape[1:]),)
        if known is None or known[0] != AXIS or not says_rest or not whole:
            self._held(*node.all_input_nodes)
            return
        self.tensors[node] = AXIS, np.repeat(known[1], prod(shape[2:]))

    def _channels(self, value: object, axis: int) -> np.ndarray:
        """Those on an axis of an operator's input; held where they are not followed on that axis."""
        known = self._known(value)
        if known and known[0] == axis:
            return known[1]
        self._held(value)
        return np.full(self._size(value, axis) if axis >= 0 else 1, FIXED)

    def _held(self, *values: object) -> None:
        """Let the channels of tensors, and of stored ones on all axes, be as they are."""
        for value in values:
            if known := self._known(value):
                self.sets.join(known[1], FIXED)
            elif _is_stored(value):
                for axis in range(self._dim(value)):
                    self.sets.join(self._place(value, axis), FIXED)

    def _known(self, value: object) -> tuple[int, np.ndarray] | None:
        """The axis on which the channels of a tensor are followed, and these."""
        return self.tensors.get(value) if isinstance(value, Node) else None

    def _axis(self, value: object) -> int | None:
        known = self._known(value)
        return known[0] if known else None

    def _dim(self, value: object) -> int:
        return len(_shape(value))

    def _size(self, value: object, axis: int) -> int:
        size = _shape(value)[axis]
        return size if isinstance(size, int) else 1


def _shape(value: object) -> tuple:
    found = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(found.shape) if isinstance(found, Tensor) else ()


def _is_stored(value: object) -> TypeGuard[Node]:
    return isinstance(value, Node) and value.op == "get_attr"
