"""Weights for quantization-aware training to start from: what the methods without training make of the FP32 network.

The methods work on a graph whose batch norms are folded, training has them beside their convolutions. So each change is
given back to the parameters that it came from, exactly in evaluation: the graph that is trained, and its checkpoint,
are those of a training from FP32 weights, and hold other numbers.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from common.quantization.batch_norm import raise_zero_factors
from common.quantization.fake_quantize import FakeQuantize
from common.quantization.folding import (
    BATCH_NORM,
    CONVOLUTIONS,
    EPS,
    NORM,
    fold_exported_batch_norm,
    has_own_convolution,
)
from common.quantization.graphs import WEIGHTED, export_graph, is_dequantized_weight, stored
from common.quantization.methods import ADAROUND, PtqMethods
from common.quantization.nodes import input_of, name_of, setting_of
from common.quantization.pt2e import calibrate_folded
from common.quantization.settings import QuantizationSettings
from models.fuse import fuse_upsampling

aten = torch.ops.aten
BIAS = 2  # its place in the arguments of an operator with weights
BY_CHANNEL = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor}  # that may take a constant
WEIGHT_RANGE = 3, 4  # places of the ends of the codes in a dequantize of weights; by channel one further


def start_from_ptq(
    prepared: GraphModule,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    settings: QuantizationSettings,
    batches: Iterable[Tensor],
    methods: PtqMethods,
) -> None:
    """Give a graph the weights, biases and scales of weights that `methods` make of those of `model`, in place.

    A bias is corrected where there is a bias or a batch norm to hold it; a layer that is called twice, or whose
    weights are no parameters, stays as it is. Ranges of activations are left to `calibrate`.

    Args:
        prepared: by `prepare_qat`, from the same weights.
        model: the FP32 network in evaluation mode, on the device of `prepared`; it stays as it is.
        batches: images (N, C, H, W) on that device.
    """
    network = copy.deepcopy(model)
    if settings.fused:
        fuse_upsampling(network)
    plain = export_graph(network, input_shape)
    raise_zero_factors(plain)
    folded = copy.deepcopy(plain)
    fold_exported_batch_norm(folded)
    parts = _Parts.of(plain, set(prepared.state_dict()))
    fixed = {node.name for node in folded.graph.nodes if node.meta.get(NORM, node.name) in parts.fixed}
    calibrated = calibrate_folded(folded, settings, batches, methods, fixed, parts.without_bias)
    int8 = calibrated.finished()
    with torch.no_grad():
        source = _Source(plain, folded, int8, calibrated.scales, rounded=ADAROUND in methods.on_weights)
        held = prepared.state_dict()
        for name, value in source.values(parts).items():
            held[name].copy_(value)
        _use_scales(prepared, source.scales_of_weights())


@dataclass(frozen=True)
class _Parts:
    """The operators of an exported graph in evaluation mode that have parameters, and those that have to keep them."""

    layers: list[Node]  # with weights, and with the batch norm behind them where it is their own
    norms: list[Node]  # batch norms of their own
    constants: list[Node]  # sums and products by channel
    fixed: set[str]  # names of any of these whose parameters cannot be changed for them alone
    without_bias: set[str]  # names of layers that have no place for a bias

    @classmethod
    def of(cls, graph: GraphModule, known: set[str]) -> "_Parts":
        """Those of `graph`; `known` are the names of what a checkpoint keeps."""
        reads = [node for node in graph.graph.nodes if node.op == "get_attr"]
        counts = Counter(stored(graph, node).data_ptr() for node in reads)

        def can_change(node: object) -> bool:
            if not isinstance(node, Node) or node.op != "get_attr" or name_of(node) not in known:
                return False
            return counts[stored(graph, node).data_ptr()] == 1

        layers, norms, constants = list[Node](), list[Node](), list[Node]()
        fixed, without_bias = set[str](), set[str]()
        for node in graph.graph.nodes:
            if node.target in WEIGHTED:
                norm, bias = _own_norm(node), node.args[BIAS] if len(node.args) > BIAS else None
                held = [node.args[1], *([bias] if bias else []), *(norm.args[1:5] if norm else [])]
                place = layers
                if not norm and not bias:
                    without_bias.add(node.name)
            elif node.target == BATCH_NORM and not has_own_convolution(node):
                held, place = list(node.args[1:5]), norms
            elif node.target in BY_CHANNEL and isinstance(node.args[1], Node) and node.args[1].op == "get_attr":
                held, place = [node.args[1]], constants
            else:
                continue
            if all(map(can_change, held)):
                place.append(node)
            else:
                fixed.add(node.name)
        return cls(layers, norms, constants, fixed, without_bias)


def _own_norm(layer: Node) -> Node | None:
    """The batch norm that is folded into a layer."""
    users = list(layer.users)
    return users[0] if users and users[0].target == BATCH_NORM and has_own_convolution(users[0]) else None


class _Source:
    """New values for the parameters of the graph `plain`, by their names.

    Args:
        plain: with its batch norms.
        folded: the same without them, equalized.
        int8: what became of `folded`; an operator with weights has its name from there.
        scales: by what equalization divided the channels of each tensor, as `equalize` says.
        rounded: weights get the values that INT8 has, since it was decided for each which of two it is.
    """

    def __init__(
        self, plain: GraphModule, folded: GraphModule, int8: GraphModule, scales: Mapping[str, Tensor], rounded: bool
    ):
        self.plain, self.folded, self.int8, self.scales, self.rounded = plain, folded, int8, scales, rounded
        self.floats = {node.name: node for node in folded.graph.nodes}
        self.norms = {node.meta[NORM]: node for node in reversed(folded.graph.nodes) if NORM in node.meta}  # products
        self.layers = {node.name: node for node in int8.graph.nodes if node.target in WEIGHTED}

    def values(self, parts: _Parts) -> dict[str, Tensor]:
        """Of all parameters that may have changed."""
        found: dict[str, Tensor] = {}
        for node in parts.layers:
            found |= self._of_layer(node)
        for node in parts.norms:
            found |= self._of_norm(node)
        constants = {name_of(input_of(node, 1)): input_of(self.floats[node.name], 1) for node in parts.constants}
        return found | {name: stored(self.folded, node) for name, node in constants.items()}

    def _of_layer(self, node: Node) -> dict[str, Tensor]:
        """Weights and bias, and of the batch norm behind a layer what they are folded with.

        A channel is divided by its scale by the norm's factor and offset, so that its statistics stay those of what it
        gets. Its running mean takes the correction of the bias: that is the mean it would find itself.
        """
        weights, bias = self._weights(node), self._bias(node)
        name, norm = name_of(input_of(node, 1)), _own_norm(node)
        if norm is None:
            return {name: weights} | ({name_of(input_of(node, BIAS)): bias} if bias is not None else {})
        assert bias is not None  # that of folding
        gamma, beta, mean, variance = (stored(self.plain, input_of(norm, place)) for place in range(1, 5))
        scale = self.scales.get(node.name, torch.ones(len(mean))).to(mean.device)
        own_bias = stored(self.plain, input_of(node, BIAS)) if self._has_bias(node) else torch.zeros_like(mean)
        gamma, beta = gamma.double() / scale, beta.double() / scale
        factor = gamma / (variance.double() + setting_of(norm, EPS)).sqrt()
        shape = [1] * weights.dim()
        shape[int(CONVOLUTIONS[node.target])] = -1
        mean = own_bias.double() + (beta - bias.double()) / factor
        held = (weights.double() / factor.reshape(shape), gamma, beta, mean)
        names = (name, *(name_of(input_of(norm, place)) for place in range(1, 4)))
        return {each: value.float() for each, value in zip(names, held, strict=True)}

    def _of_norm(self, node: Node) -> dict[str, Tensor]:
        """Statistics of channels that were divided by scales, and the factors and offsets with which it gives its
        own."""
        product = self.norms[node.name]
        (result,) = product.users
        scale = self.scales.get(input_of(product).name)
        if scale is None:
            return {}
        factor, shift = (stored(self.folded, input_of(each, 1)).double().flatten() for each in (product, result))
        mean, variance = (stored(self.plain, input_of(node, place)).double() for place in (3, 4))
        scale = scale.to(mean.device)
        mean, variance = mean / scale, variance / scale.square()
        gamma = factor * (variance + setting_of(node, EPS)).sqrt()
        held = (gamma, shift + mean * factor, mean, variance)
        return {name_of(input_of(node, place)): value.float() for place, value in enumerate(held, start=1)}

    def scales_of_weights(self) -> dict[str, Tensor]:
        """The scales that INT8's weights have, of every layer whose weights are codes."""
        found = {}
        for node in self.plain.graph.nodes:
            if node.target in WEIGHTED and node.name in self.layers and input_of(node, 1).op == "get_attr":
                pair = input_of(self.layers[node.name], 1)
                if is_dequantized_weight(pair):
                    found[name_of(input_of(node, 1))] = _scale(self.int8, pair)
        return found

    def _weights(self, node: Node) -> Tensor:
        """Of a folded layer: as they are within the range of their codes, or the values of the codes."""
        weights, pair = stored(self.folded, input_of(self.floats[node.name], 1)), input_of(self.layers[node.name], 1)
        if not is_dequantized_weight(pair):
            return weights
        scale, first = _scale(self.int8, pair), WEIGHT_RANGE[0]
        if scale.dim():
            shape = [1] * weights.dim()
            shape[setting_of(pair, 3)] = -1
            scale, first = scale.reshape(shape), WEIGHT_RANGE[1]
        if self.rounded:
            return stored(self.int8, input_of(pair)).to(scale) * scale
        return weights.clamp(setting_of(pair, first) * scale, setting_of(pair, first + 1) * scale)

    def _bias(self, node: Node) -> Tensor | None:
        """Of a folded layer, corrected."""
        layer = self.layers[node.name]
        return stored(self.int8, input_of(layer, BIAS)) if self._has_bias(layer) else None

    @staticmethod
    def _has_bias(node: Node) -> bool:
        return len(node.args) > BIAS and node.args[BIAS] is not None


def _scale(int8: GraphModule, pair: Node) -> Tensor:
    """Of codes of weights: one number, or one of each channel."""
    scale = pair.args[1]
    return stored(int8, scale) if isinstance(scale, Node) else torch.tensor(setting_of(pair, 1))


def _use_scales(prepared: GraphModule, scales: dict[str, Tensor]) -> None:
    """Let the weights of a prepared graph be rounded in steps of `scales`, by the name of the parameter."""
    for node in prepared.graph.nodes:
        if node.target not in WEIGHTED or input_of(node, 1).op != "call_module":
            continue
        rounding = prepared.get_submodule(name_of(input_of(node, 1)))
        source = input_of(input_of(node, 1))
        if source.target == aten.mul.Tensor:  # with a batch norm's factor
            source = input_of(source)
        if isinstance(rounding, FakeQuantize) and source.op == "get_attr" and name_of(source) in scales:
            rounding.use_scale(scales[name_of(source)])
