"""Cross-layer equalization: scales of channels are moved between layers, so that one range fits all of a tensor.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019), move the scale of a
channel from a layer through a ReLU to the next, and choose it so that both have the same range of weights. Here a scale
is moved through all that `channel_groups` knows, and chosen by the noise that rounding makes in weights and
activations: the ranges of the images' values count beside those of the weights.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from common.quantization.channel_groups import FIXED, Channels, Layer, channel_groups
from common.quantization.graphs import drop_unused_values, finish, store_beside, stored, with_relu
from common.quantization.nodes import input_of
from common.system.progress import progress

STEPS, RATE = 120, 0.1  # of the search for the scales, whose logarithms are found by gradient descent
STEPS_OF_RANGE, LARGEST_CODE = 255, 127  # steps of the range of an activation; the largest code of a weight
MOST = 10.0  # of the logarithm of a scale at the start: a channel that is hardly there takes no scale without end
LEAST_SIGNAL = 1e-20  # sum of squares below which an output is always 0


@torch.no_grad()
def equalize(
    graph: GraphModule, batches: Sequence[Tensor], per_channel: bool, fixed: Collection[str] = ()
) -> dict[str, Tensor]:
    """Give every channel that can take one a scale, by which quantization costs least, in place; outputs stay the same.

    Args:
        graph: a float graph in evaluation mode, without batch norm.
        batches: images (N, C, H, W), by which activations are known.
        per_channel: weights will have a scale for each output channel.
        fixed: names of operators whose weights, factors and offsets stay.

    Returns by what the channels (C,) of each tensor were divided, by the name of the node that gives it, float64;
    nothing where no channel can take a scale.
    """
    channels = channel_groups(graph, fixed)
    if channels.count == 1:
        return {}
    seen = _Seen(graph, channels)
    for images in batches:
        seen.see(images)
    scales = _search(_Noise(channels, seen, per_channel), channels.count)
    _rescale(graph, channels, scales)
    return {node.name: scales.cpu()[groups] for node, groups in channels.tensors.items()}


class _Seen(Interpreter):
    """Runs a graph; keeps the ends of the channels of its tensors, and what an error of each does to the outputs.

    The latter is the mean square of the gradient of sum v y, of outputs y and random v of variance 1 / mean y^2: the
    noise in the outputs, as a share of their signal, is the sum over all values of gain times the variance of the
    value's own noise.
    """

    def __init__(self, graph: GraphModule, channels: Channels):
        super().__init__(graph)
        of_layers = {each for layer in channels.layers for each in (layer.node, input_of(layer.node))}
        self.sites = {with_relu(node) for node in of_layers}
        self.weights = {input_of(layer.node, 1): layer for layer in channels.layers if layer.weighted}
        self.smallest: dict[Node, Tensor] = {}
        self.largest: dict[Node, Tensor] = {}
        self.gains: dict[Node, Tensor] = {}  # of channels, or of pairs of channels of weights, added up over images
        self.probes: dict[Node, Tensor] = {}
        self.nonzero: dict[Node, Tensor] = {}  # of the batch at hand
        self.generator = torch.Generator().manual_seed(0)

    def see(self, images: Tensor) -> None:
        """Add what one batch shows."""
        self.probes, self.nonzero = {}, {}
        with torch.enable_grad():
            outputs = self.run(images)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            drawn = [torch.randn(y.shape, generator=self.generator).to(y) for y in outputs]
            powers = [y.detach().square().sum().clamp(min=LEAST_SIGNAL).sqrt() for y in outputs]
            total = torch.stack([(v * y / p).sum() for v, y, p in zip(drawn, outputs, powers, strict=True)]).sum()
            found = torch.autograd.grad(total, list(self.probes.values()), allow_unused=True)
        for node, gradient in zip(self.probes, found, strict=True):
            if gradient is not None:
                axes = 2 if node in self.weights else 1
                squares = gradient if node in self.weights else gradient.transpose(0, 1)
                squares = squares.square().reshape(*squares.shape[:axes], -1)
                if node in self.nonzero:  # 0 is a code
                    squares = squares * self.nonzero[node]
                squares = squares.sum(dim=-1)
                self.gains[node] = self.gains.get(node, torch.zeros_like(squares)) + squares

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.weights:
            self.probes[n] = result.detach().clone().requires_grad_()
            return self.probes[n]
        if n not in self.sites or not isinstance(result, Tensor):
            return result
        values = result.detach().transpose(0, 1).flatten(1)
        zero = values.new_zeros(len(values))  # a range holds 0
        self.smallest[n] = torch.minimum(self.smallest.get(n, zero), values.amin(dim=1))
        self.largest[n] = torch.maximum(self.largest.get(n, zero), values.amax(dim=1))
        self.nonzero[n] = values != 0
        self.probes[n] = torch.zeros_like(result, requires_grad=True)
        return result + self.probes[n]


@dataclass(frozen=True)
class _Weights:
    """The largest weight of each pair of channels, and what noise in it does; see `_Noise`."""

    largest: Tensor  # (first axis, second axis)
    gain: Tensor  # the same
    sources: Tensor  # groups, of each pair
    results: Tensor
    rows: int | None  # the axis of the output channels, where each has a scale; None: one for all

    def noise(self, logs: Tensor) -> Tensor:
        moved = logs[self.sources] - logs[self.results]
        scaled = self.largest * moved.exp()
        step = (scaled.amax() if self.rows is None else scaled.amax(1 - self.rows, keepdim=True)) / LARGEST_CODE
        return (step.square() / 12 * self.gain * (-2 * moved).exp()).sum()


class _Noise:
    """The noise that rounding causes in the outputs, as a share of their signal, by the logarithms of the scales.

    A channel c of an activation, divided by s_c, is rounded in steps of the range of the widest of its tensor, and its
    noise counts s_c times as much: step^2 / 12 * s_c^2 * gain. A weight w_oc becomes w_oc s_c / s_o, is rounded in
    steps of the largest of its tensor or its row, and its noise counts s_o / s_c times as much.
    """

    def __init__(self, channels: Channels, seen: _Seen, per_channel: bool):
        self.weights = [
            _weights(seen, node, layer, per_channel)
            for node, layer in seen.weights.items()
            if node in seen.gains and (layer.sources.any() or layer.results.any())
        ]
        self.activations = [
            (seen.smallest[node], seen.largest[node], gain, torch.from_numpy(channels.tensors[node]).to(gain.device))
            for node, gain in seen.gains.items()
            if node in seen.sites and channels.tensors[node].any()
        ]

    def equal_weights(self, none: Tensor) -> Tensor:
        """Nagel's logarithms: sqrt(r / q) of the largest weight r before a channel and q behind it, where both are."""
        before, behind = torch.zeros_like(none), torch.zeros_like(none)
        for each in self.weights:
            before.scatter_reduce_(0, each.results.flatten(), each.largest.flatten(), "amax")
            behind.scatter_reduce_(0, each.sources.flatten(), each.largest.flatten(), "amax")
        logs = ((before / behind).log() / 2).nan_to_num(0.0, 0.0, 0.0)
        logs[FIXED] = 0
        return logs.clamp(-MOST, MOST)

    def __call__(self, logs: Tensor) -> Tensor:
        total = logs.new_zeros(()) + sum(each.noise(logs) for each in self.weights)
        for smallest, largest, gain, groups in self.activations:
            shrunk = (-logs[groups]).exp()
            step = ((largest * shrunk).amax() - (smallest * shrunk).amin()) / STEPS_OF_RANGE
            total = total + (step.square() / 12 * gain * (2 * logs[groups]).exp()).sum()
        return total


def _weights(seen: _Seen, node: Node, layer: Layer, per_channel: bool) -> _Weights:
    gain = seen.gains[node]
    ins, outs = (torch.tensor(each).to(gain.device) for each in (layer.ins, layer.outs))
    sources, results = (torch.from_numpy(each).to(gain.device) for each in (layer.sources, layer.results))
    values = seen.probes[node].detach()
    rows = int(layer.outs.shape[1] > 1 and layer.outs[0, 0] != layer.outs[0, 1]) if per_channel else None
    largest = values.reshape(*values.shape[:2], -1).abs().amax(dim=-1)
    return _Weights(largest, gain, sources[ins], results[outs], rows)


def _search(noise: _Noise, count: int) -> Tensor:
    """The scales (count,) of least noise, float64; that of FIXED is 1."""
    device = next((each.largest.device for each in noise.weights), torch.device("cpu"))
    none = torch.zeros(count, device=device)
    equal = noise.equal_weights(none)
    with torch.enable_grad():
        logs = (equal if noise(equal) < noise(none) else none.clone()).requires_grad_()
        optimizer = torch.optim.Adam([logs], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in progress(range(STEPS), "equalization", unit="step"):
            optimizer.zero_grad()
            noise(logs).log().backward()
            if logs.grad is None:  # no noise anywhere that depends on a scale
                break
            logs.grad[FIXED] = 0
            optimizer.step()
            schedule.step()
    found = logs.detach().double()
    if not found.isfinite().all() or not noise(found.float()) < noise(none):
        return torch.ones_like(found)
    return found.exp()


def _rescale(graph: GraphModule, channels: Channels, scales: Tensor) -> None:
    """Divide every channel by its scale: weights, factors, biases and constants."""
    own = scales.cpu()
    for layer in channels.layers:
        moved = own[layer.sources[layer.ins]] / own[layer.results[layer.outs]]
        _replace(graph, layer.node, 1, moved)
        if layer.bias is not None:
            _replace(graph, layer.node, 2, 1 / own[layer.results])
    for node, groups in channels.shifts:
        _replace(graph, node, 1, 1 / own[groups])
    finish(graph)
    drop_unused_values(graph)


def _replace(graph: GraphModule, node: Node, place: int, factors: Tensor) -> None:
    """Multiply a stored argument of a node, along its first axes, under a name of its own."""
    source = input_of(node, place)
    values = stored(graph, source).detach()
    factors = factors.reshape(*factors.shape, *[1] * (values.dim() - factors.dim())).to(values.device)
    with graph.graph.inserting_before(node):
        node.update_arg(place, store_beside(graph, source, (values.double() * factors).to(values), "_equalized"))
