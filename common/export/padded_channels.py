"""Channels in fours and sixteens, as ONNX Runtime's int8 convolutions want them.

Its kernels read the sums of a pixel four at a time, compute 16 output channels at once, and depthwise ones 16 channels:
other numbers take the slow way. On one thread with VNNI a 3x3 convolution of 25 to 25 channels takes 131 us and one of
28 to 28 takes 61 (45x60 pixels), one of 31 to 16 takes 1.43 ms and of 32 takes 0.80 (180x240), a depthwise one of 12
takes 0.42 and of 16 takes 0.17.

Convolutions therefore get channels of zeros, which go on through what computes each channel alone, and end where the
next convolution reads them with weights of 0, or in a slice in front of what takes no others. No real channel changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from common.export.subpixel import AT_ONCE, is_subpixel
from common.quantization.folding import GROUPS, IN_FLOAT, groups_of
from common.quantization.graphs import (
    PRELU,
    RELU,
    TRANSPOSED,
    bias_of,
    computes_on_codes,
    drop_unused_values,
    finish,
    store_beside,
    stored,
    with_relu,
)
from common.quantization.nodes import input_of, operator_of, setting_of
from common.quantization.pt2e import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE

aten = torch.ops.aten
CHANNELS = 1  # the axis of a tensor
SUMMANDS = 4  # that a kernel reads at once: of inputs, and so of outputs that are the next one's inputs
MOST_MORE = 1 / 3  # of the channels
PADDED = "quanty_padded"  # of the meta of a slice: how many channels there are
# operators that compute each channel alone, from one tensor (the others of their arguments are settings): those that a
# convolution is computed with, and others, where more channels than MOST_MORE cost more than a slice
WITH_CONVOLUTION = {QUANTIZE, DEQUANTIZE, *RELU}
CHANNELWISE = {
    *WITH_CONVOLUTION,
    *(aten.clamp.default, aten.hardtanh.default, aten.hardtanh_.default),
    *(aten.sigmoid.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.silu.default, aten.silu_.default),
    *(aten.gelu.default, aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default),
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec),
}
# and from two tensors, one of which may be a constant of each channel
OF_TWO = {
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul_.Tensor),
    *(aten.maximum.default, aten.minimum.default),
}


@torch.no_grad()
def pad_channels(int8: GraphModule) -> int:
    """Pad the channels of convolutions between codes, in place; returns of how many convolutions."""
    padding = _Padding(int8)
    changed = 0
    for node in list(int8.graph.nodes):
        with int8.graph.inserting_before(node):
            if PADDED in node.meta:
                padding.begin(node)
            elif node.target == aten.conv2d.default:
                changed += padding.convolution(node)
            elif node.target in CHANNELWISE:
                padding.follow(node)
            elif node.target in OF_TWO:
                padding.join(node)
    padding.settle()
    finish(int8)
    drop_unused_values(int8)
    return changed


@torch.no_grad()
def pad_transposed(int8: GraphModule) -> int:
    """Pad the outputs of transposed convolutions which depthwise ones will read, in place; returns of how many.

    Before they become convolutions whose channels are pixels, behind which a padding would copy every pixel.
    """
    changed = 0
    for node in list(int8.graph.nodes):
        if node.target != TRANSPOSED or not computes_on_codes(node) or not is_subpixel(int8, node):
            continue
        last = with_relu(node)
        if [user.target for user in last.users] != [QUANTIZE]:
            continue
        (quantized,) = last.users
        channels = _kernel(int8, node).shape[CHANNELS]
        more = _padded(channels, AT_ONCE) - channels
        pairs = list(quantized.users)
        readers = [user for pair in pairs for user in pair.users]
        if 0 < more <= MOST_MORE * channels and any(map(_is_by_channel, readers)):
            with int8.graph.inserting_before(node):
                weight, bias = _operands(int8, node, (0, 0, 0, 0, 0, more), more)
                node.args = (node.args[0], weight, bias, *node.args[3:])
            for each in {node, last}:
                each.meta["val"] = _of_width(node.meta["val"], channels + more)
            with int8.graph.inserting_after(quantized):
                own = int8.graph.call_function(aten.slice.Tensor, (quantized, CHANNELS, 0, channels))
            own.meta[PADDED] = channels + more
            for pair in pairs:
                pair.replace_input_with(quantized, own)
            changed += 1
    finish(int8)
    drop_unused_values(int8)
    return changed


def _is_by_channel(node: Node) -> bool:
    """Whether it becomes a depthwise convolution (`use_channelwise_forms`)."""
    return node.target == PRELU or IN_FLOAT in node.meta


@dataclass
class _Padding:
    """What has been padded so far in a graph that is gone through in its order."""

    int8: GraphModule
    wide: dict[Node, Node] = field(default_factory=dict)  # a value -> the same, and channels of no meaning behind it
    channels: dict[Node, int] = field(default_factory=dict)  # of each of those values, and of what is in its place
    kept: set[Node] = field(default_factory=set)  # values that are still computed as they were

    def begin(self, node: Node) -> None:
        """A slice of what `pad_transposed` padded."""
        wide = input_of(node)
        self.wide[node] = wide
        self.channels[node], self.channels[wide] = setting_of(node, 3), node.meta[PADDED]

    def convolution(self, node: Node) -> bool:
        """Pad its inputs and outputs; whether there was anything to pad."""
        last = with_relu(node)
        if not computes_on_codes(node) or [user.target for user in last.users] != [QUANTIZE]:
            return False
        source, kernel = input_of(node), _kernel(self.int8, node)
        depthwise = _is_depthwise(node, kernel)
        if groups_of(node) != 1 and not depthwise:
            return False
        inputs = len(kernel) if depthwise else kernel.shape[CHANNELS]
        if _is_image(node):
            self._pad_input(source, inputs)
        more = self.channels[self.wide[source]] - inputs if source in self.wide else 0
        outputs, settings = len(kernel), list(node.args[3:])
        if depthwise:
            outputs = settings[GROUPS - 3] = outputs + more
        elif _is_image(node):
            outputs = _padded(outputs, self._step(next(iter(last.users)), outputs))
        if not more and outputs == len(kernel):
            return False
        added = outputs - len(kernel)
        operands = _operands(self.int8, node, (0, 0, 0, 0, 0, 0 if depthwise else more, 0, added), added)
        padded = self.int8.graph.call_function(
            operator_of(node), (self.wide.get(source, source), *operands, *settings), node.kwargs
        )
        self._replace(node, padded, len(kernel), outputs)
        return True

    def follow(self, node: Node) -> None:
        """What computes each channel alone computes all of them."""
        source = input_of(node)
        if source not in self.wide:
            return
        more = self.channels[self.wide[source]] / self.channels[source] - 1
        if node.target in WITH_CONVOLUTION or more <= MOST_MORE:
            self._replace(node, self._copied(node), self.channels[source], self.channels[self.wide[source]])

    def join(self, node: Node) -> None:
        """Two tensors with the same channels more, or one of them and a constant."""
        tensors = [each for each in node.args[:2] if isinstance(each, Node)]
        padded = [each for each in tensors if each in self.wide]
        forms = {(self.channels[each], self.channels[self.wide[each]]) for each in padded}
        others = [each for each in tensors if each not in self.wide]
        if len(forms) != 1 or not all(each.op == "get_attr" for each in others):
            return
        ((channels, width),) = forms
        constants = {each: self._constant(each, channels, width) for each in others}
        self._replace(node, self._copied(node, constants), channels, width)

    def settle(self) -> None:
        """Give what takes no other channels those that it had."""
        for node in reversed(list(self.wide)):
            if node in self.kept:
                continue
            if node.users and node.target == DEQUANTIZE:  # the slice belongs in front of it, where it moves codes
                self.kept.add(node)
                continue
            if node.users:
                with self.int8.graph.inserting_after(self.wide[node]):
                    node.replace_all_uses_with(self._sliced(self.wide[node], self.channels[node]))
            self.int8.graph.erase_node(node)  # by name: an activation in place counts as used

    def _pad_input(self, source: Node, channels: int) -> None:
        """Codes that a convolution reads, where their number is none that its kernel wants."""
        codes = input_of(source)
        width = _padded(channels, self._step(codes))
        if source in self.wide or (codes not in self.wide and width == channels):
            return
        if codes not in self.wide:
            self.wide[codes] = self._more(codes, channels, width, setting_of(source, 2))
            self.channels[codes], self.channels[self.wide[codes]] = channels, width
            self.kept.add(codes)
        self.follow(source)

    def _step(self, codes: Node, channels: int = AT_ONCE) -> int:
        """Of which number those that read codes want a multiple; of few output `channels` all are computed anyway."""
        readers = [user for pair in codes.users if pair.target == DEQUANTIZE for user in pair.users]
        depthwise = (
            _is_depthwise(each, _kernel(self.int8, each))
            for each in readers
            if each.target == aten.conv2d.default and computes_on_codes(each)
        )
        return AT_ONCE if channels < AT_ONCE or any(depthwise) else SUMMANDS

    def _more(self, codes: Node, channels: int, width: int, zero_point: int) -> Node:
        """`codes` with zeros behind them; of a concatenation its last part, which may have some."""
        if codes.target != aten.cat.default or codes.args[1:] != (CHANNELS,):
            return self._zeros_behind(codes, width - channels, zero_point)
        joined: Sequence[Node] = setting_of(codes, 0)
        *parts, last = joined
        lacking = width - channels
        if last in self.wide:
            wanted, last = self.channels[last] + lacking, self.wide[last]
            lacking = wanted - self.channels[last]
            if lacking < 0:
                last = self._sliced(last, wanted)
        if lacking > 0:
            last = self._zeros_behind(last, lacking, zero_point)
        return self.int8.graph.call_function(aten.cat.default, ([*parts, last], *codes.args[1:]))

    def _zeros_behind(self, codes: Node, more: int, zero_point: int) -> Node:
        return self.int8.graph.call_function(aten.constant_pad_nd.default, (codes, [0, 0, 0, 0, 0, more], zero_point))

    def _sliced(self, node: Node, channels: int) -> Node:
        return self.int8.graph.call_function(aten.slice.Tensor, (node, CHANNELS, 0, channels))

    def _constant(self, source: Node, channels: int, width: int) -> Node:
        """A summand or factor, of each channel or of all."""
        values = stored(self.int8, source)
        by_channel = values.dim() >= 3 and values.shape[-3] == channels and channels > 1
        return _zeros_after(self.int8, source, (0, 0, 0, 0, 0, width - channels)) if by_channel else source

    def _copied(self, node: Node, constants: Mapping[Node, Node] = MappingProxyType({})) -> Node:
        return self.int8.graph.node_copy(node, lambda each: constants.get(each) or self.wide.get(each, each))

    def _replace(self, node: Node, padded: Node, channels: int, width: int) -> None:
        """Note what stands for `node` from now on; what has no channels more takes its place at once."""
        padded.meta = dict(node.meta)
        if width == channels:
            node.replace_all_uses_with(padded)
            return
        if "val" in node.meta:
            padded.meta["val"] = _of_width(node.meta["val"], width)
        self.wide[node] = padded
        self.channels[node], self.channels[padded] = channels, width


def _operands(int8: GraphModule, node: Node, pads: tuple[int, ...], outputs: int) -> list[Node | None]:
    """Weights and bias of a convolution with zeros: as `pads` of the weights say, which give so many `outputs` more."""
    weight, bias = input_of(node, 1), bias_of(node)
    codes, settings = _zeros_after(int8, input_of(weight), pads), list(weight.args[1:])
    if weight.target == DEQUANTIZE_PER_CHANNEL:
        scales, zero_points = (input_of(weight, place) for place in (1, 2))
        settings[0] = _zeros_after(int8, scales, (0, outputs), value=1)
        settings[1] = _zeros_after(int8, zero_points, (0, outputs))
    weight = int8.graph.call_function(operator_of(weight), (codes, *settings))
    return [weight, None if bias is None else _zeros_after(int8, bias, (0, outputs))]


def _zeros_after(int8: GraphModule, source: Node, pads: tuple[int, ...], value: float = 0) -> Node:
    """What a get_attr stands for, padded; the get_attr itself where nothing is added."""
    if not any(pads):
        return source
    return store_beside(int8, source, F.pad(stored(int8, source), pads, value=value), "_padded")


def _kernel(int8: GraphModule, convolution: Node) -> Tensor:
    """The codes of the weights of one that computes on codes."""
    return stored(int8, input_of(input_of(convolution, 1)))


def _is_depthwise(node: Node, kernel: Tensor) -> bool:
    return groups_of(node) == len(kernel) > 1 and kernel.shape[CHANNELS] == 1


def _is_image(node: Node) -> bool:
    """Of more than one pixel, where padding pays."""
    return "val" not in node.meta or tuple(node.meta["val"].shape[2:]) != (1, 1)


def _of_width(value: Tensor, width: int) -> Tensor:
    """A shape without numbers, of other channels."""
    return value.new_empty((value.shape[0], width, *value.shape[2:]))


def _padded(channels: int, step: int) -> int:
    """The next multiple."""
    return -(-channels // step) * step
