"""What is quantized and how: XNNPACKQuantizer's annotation, with better ranges of activations and means."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    QuantPattern,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from common.quantization.fake_quantize import FakeQuantize, PerChannelFakeQuantize
from common.quantization.folding import BATCH_NORM, IN_FLOAT, is_grouped_transposed
from common.quantization.graphs import TRANSPOSED, WEIGHTED
from common.quantization.methods import MSE_WEIGHTS, USUAL, PtqMethods
from common.quantization.nodes import input_of, setting_of
from common.quantization.ranges import ActivationObserver, SquaredErrorObserver, SquaredErrorPerChannelObserver
from common.runtimes.targets import ONNX_RUNTIME, Target

aten = torch.ops.aten
# Below this input an activation is 0 to within its error: |SiLU(x)| <= 0.0027 for x <= -8, |GELU(x)| <= 0.0041 for -3
SATURATION = {aten.silu.default: -8.0, aten.silu_.default: -8.0, aten.gelu.default: -3.0}
POOL = aten.adaptive_avg_pool2d.default
SUMS = {aten.add.Tensor, aten.add_.Tensor}
OUT_OF_PLACE = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
MEANS = {POOL, aten.mean.dim}
# XNNPACKQuantizer's are 2^-12 for both: 60 codes are left then for an image whose values are divided by 255 twice. The
# former is that of PyTorch's kernel, which trains with no smaller one. A bias of up to 32 fits into 32 bits in the
# steps of its sum, where input and weights are at their smallest.
SMALLEST_SCALE, SMALLEST_WEIGHT_SCALE = 6.1e-5, 2**-12
# of weights. Two products of a code of 8 bits and a reduced one fit into 16 bits, in which processors without an int8
# dot product add them
CODES, REDUCED_CODES = (-127, 127), (-64, 63)


def module_names(node: Node) -> list[str]:
    """The modules that an operator of an exported graph belongs to, the largest first: backbone, backbone.encoder..."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]


def is_rounded_behind(node: Node) -> bool:
    """Whether the output of an operator was marked to be rounded."""
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    return annotation is not None and annotation.output_qspec is not None


def modules_matching(graph: GraphModule, patterns: Sequence[str]) -> list[str]:
    """The modules of a graph whose names match one of the patterns of `--keep_float`, as in `fnmatch`.

    Raises:
        ValueError: a pattern matches no module.
    """
    names = list(dict.fromkeys(name for node in graph.graph.nodes for name in module_names(node)))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(f"--keep_float {pattern}: matches no module; the network's largest are {known}")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def own_config(
    per_channel: bool,
    is_qat: bool,
    symmetric: bool = False,
    reduced_range: bool = False,
    methods: PtqMethods = USUAL,
) -> QuantizationConfig:
    """XNNPACK's settings with this project's smallest scales and, for QAT, its fake quantization.

    Args:
        symmetric: activations have the zero point 0, too.
        reduced_range: codes of weights are -64..63, not -127..127.
        methods: how ranges are found without QAT.
    """
    smallest, largest = REDUCED_CODES if reduced_range else CODES
    config = get_symmetric_quantization_config(per_channel, is_qat, weight_qmin=smallest, weight_qmax=largest)
    if is_qat:
        of_activations = FakeQuantize.with_args(eps=SMALLEST_SCALE)
        of_weights = _of_weights(per_channel)
    else:
        of_activations = ActivationObserver.with_args(ranges=methods.ranges, eps=SMALLEST_SCALE)
        of_weights = config.weight.observer_or_fake_quant_ctr
        if MSE_WEIGHTS in methods.on_weights:
            observer = SquaredErrorPerChannelObserver if per_channel else SquaredErrorObserver
            of_weights = observer.with_args(eps=SMALLEST_WEIGHT_SCALE)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=of_activations)
    if symmetric:
        activation = replace(activation, qscheme=torch.per_tensor_symmetric)
    weight = replace(config.weight, observer_or_fake_quant_ctr=of_weights)
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)


def _patterns_of(model: GraphModule) -> list[QuantPattern]:
    """What XNNPACKQuantizer looks for; with batch norm, which is exported for every search, only what can be there."""
    operators = {node.target for node in model.graph.nodes}
    absent = [] if BATCH_NORM in operators else ["bn"]
    absent += [] if TRANSPOSED in operators else ["transpose_bn"]
    patterns = XNNPACKQuantizer.SUPPORTED_PATTERNS
    return [pattern for pattern in patterns if not any(part in pattern.name for part in absent)]


def _behind_weights(model: GraphModule) -> set[Node]:
    """The operators of which only outputs are made, and no operator with weights takes anything."""
    found = set[Node]()
    for node in reversed(model.graph.nodes):
        if node.op == "output" or (node.target not in WEIGHTED and node.users and set(node.users) <= found):
            found.add(node)
    return found


def _stays_in_float(user: Node) -> bool:
    """Whether what takes a sum has no int8 form: PReLU, or a batch norm, which behind a sum is no convolution's."""
    return user.target in (BATCH_NORM, aten.prelu.default) or IN_FLOAT in user.meta


def hold_ranges_of_several(prepared: GraphModule) -> int:
    """Tell the fake quantizations that a concatenation shares with its inputs so; returns how many there are."""
    sites = [node for node in prepared.graph.nodes if node.op == "call_module" and node.all_input_nodes]
    shared = {
        id(module): module
        for module in (getattr(prepared, str(node.target), None) for node in sites if _is_joined(node.args[0]))
        if isinstance(module, FakeQuantize)
    }
    for module in shared.values():
        module.of_several = True
    return len(shared)


def _is_joined(node: object) -> bool:
    return isinstance(node, Node) and node.target == aten.cat.default


def _of_weights(per_channel: bool) -> Callable:
    """How QAT rounds weights."""
    if per_channel:
        observer = MovingAveragePerChannelMinMaxObserver
        return PerChannelFakeQuantize.with_args(eps=SMALLEST_WEIGHT_SCALE, observer=observer, of_weights=True)
    return FakeQuantize.with_args(eps=SMALLEST_WEIGHT_SCALE, observer=MovingAverageMinMaxObserver, of_weights=True)


class NetworkQuantizer(XNNPACKQuantizer):
    """XNNPACK's symmetric int8 weights and affine int8 activations, with two ranges of their own.

    Sums, products and concatenations behind the last weights are not rounded: boxes in pixels beside scores of 0..1
    would leave these one code, and have steps of 2.5 pixels themselves.

    A sum that only operators in float take, as batch norm behind a residual sum, is not rounded: rounding there brings
    no int8 arithmetic. On ESPNet these sums made most of the noise.

    A mean over the image has a range of its own, which is a small part of its input's. In its input's scale it has few
    steps, and it often lies exactly between two of them, where the last bit of a float decides.

    The input of a SiLU or GELU is quantized down to where the activation is 0 and no further, as a fused ReLU does: its
    negative range takes about half of the codes otherwise. On an eighth-width SceneSeg that brings INT8 0.6 dB nearer
    to FP32, and two runtimes of the same INT8 network 1.5 dB nearer to each other (35.2 dB).
    """

    def __init__(
        self,
        per_channel: bool,
        is_qat: bool,
        keep_float: Sequence[str] = (),
        target: Target = ONNX_RUNTIME,
        reduced_range: bool = False,
        methods: PtqMethods = USUAL,
    ):
        """`keep_float`: modules that stay in float, by patterns for their names as in `fnmatch`."""
        super().__init__()
        self.is_qat, self.target, self.methods = is_qat, target, methods
        self.keep_float = keep_float
        self.set_filter_function(lambda node: IN_FLOAT not in node.meta and not self._stays_float(node))
        self.config = own_config(per_channel, is_qat, target.symmetric, reduced_range, methods)
        self.by_tensor = own_config(False, is_qat, target.symmetric, reduced_range, methods)
        self.set_global(self.config)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark every node with what its inputs and its output are quantized to.

        Raises:
            ValueError: a pattern of `keep_float` matches no module.
        """
        modules_matching(model, self.keep_float)
        self.SUPPORTED_PATTERNS = _patterns_of(model)
        super().annotate(model)
        for node in _behind_weights(model):
            if node.target in {*SUMS, *PRODUCTS, aten.cat.default}:
                node.meta.pop(Q_ANNOTATION_KEY, None)
        for node in model.graph.nodes:
            if node.target in SUMS and Q_ANNOTATION_KEY in node.meta and all(map(_stays_in_float, node.users)):
                node.meta[Q_ANNOTATION_KEY].output_qspec = None
            if node.target in SATURATION and not self.target.fuses_activations:
                self._saturate(node.args[0], SATURATION[node.target])
            if node.target == TRANSPOSED and not self._stays_float(node):
                self._annotate_transposed(node)
            if node.target == POOL and Q_ANNOTATION_KEY not in node.meta and not self._stays_float(node):
                # XNNPACKQuantizer looks for it by what PyTorch notes of its source, in which 2.11 differs from 2.14
                inputs = {node.args[0]: self.config.input_activation}
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, _annotated=True)
            if node.target in MEANS and Q_ANNOTATION_KEY in node.meta:
                node.meta[Q_ANNOTATION_KEY].output_qspec = self.config.output_activation
        if self.target.fuses_activations:
            self._round_inputs_alone(model)
        return model

    def _round_inputs_alone(self, model: GraphModule) -> None:
        """Keep, of all annotations, the inputs of what computes in int8.

        A pair on the output would stand before the activation that is computed with it, or before nothing in int8. A
        runtime moves pairs past operators that move values, and those past the pairs, by itself.
        """
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if annotation is None:
                continue
            node.target = OUT_OF_PLACE.get(node.target, node.target)  # torchao leaves out what is written to
            annotation.output_qspec = None
            if node.target == POOL and list(setting_of(node, 1)) == [1, 1]:  # others may become matrix products
                annotation.input_qspec_map = {input_of(node): self.config.input_activation}
            elif node.target not in {*WEIGHTED, *SUMS, *PRODUCTS}:
                annotation.input_qspec_map = {}

    def _annotate_transposed(self, node: Node) -> None:
        """What XNNPACKQuantizer leaves out: grouped ones, and the axis of the channels in QAT."""
        x, weight = node.args[:2]
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        if is_grouped_transposed(node):  # its channels are not on one axis, so one scale for all
            inputs = {x: self.config.input_activation, weight: self.by_tensor.weight}
            output = self.config.output_activation
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, output_qspec=output, _annotated=True)
        elif annotation and isinstance(spec := annotation.input_qspec_map.get(weight), QuantizationSpec):
            annotation.input_qspec_map[weight] = replace(spec, ch_axis=1)

    def _stays_float(self, node: Node) -> bool:
        return any(fnmatch.filter(module_names(node), pattern) for pattern in self.keep_float)

    def _saturate(self, source: Node, lower: float) -> None:
        annotation = source.meta.get(Q_ANNOTATION_KEY)
        if annotation is None:
            return
        spec = annotation.output_qspec
        if isinstance(spec, QuantizationSpec) and all(user.target in SATURATION for user in source.users):
            if self.is_qat:
                observer = FakeQuantize.with_args(lower=lower, eps=SMALLEST_SCALE)
            else:
                observer = ActivationObserver.with_args(ranges=self.methods.ranges, lower=lower, eps=SMALLEST_SCALE)
            annotation.output_qspec = replace(spec, observer_or_fake_quant_ctr=observer)
