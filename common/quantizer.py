"""What is quantized and how: XNNPACKQuantizer's int8 annotation with two changes for networks of SiLU and GELU.

Measured on a narrow SceneSeg, see README, "Accuracy of INT8".
"""

import logging

# torchao registers its enums with an older call of PyTorch, which says so at every import
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

import torch  # noqa: E402
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # noqa: E402
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import Tensor  # noqa: E402
from torch.fx import GraphModule, Node  # noqa: E402
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, HistogramObserver  # noqa: E402
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec  # noqa: E402
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY  # noqa: E402

aten = torch.ops.aten
# Below this input an activation is 0 to within its error: |SiLU(x)| <= 0.0027 for x <= -8, |GELU(x)| <= 0.0041 for -3
SATURATION = {aten.silu.default: -8.0, aten.silu_.default: -8.0, aten.gelu.default: -3.0}
GATE = "torchvision.ops.misc.SqueezeExcitation"


class SaturatingFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """Fake quantization that spends no code on inputs below `lower`: they count as `lower`."""

    def __init__(self, lower: float, **options):
        super().__init__(**options)
        self.lower = lower

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(min=self.lower))


class SaturatingHistogramObserver(HistogramObserver):
    """A histogram of inputs that counts those below `lower` as `lower`; hands the input on as it is."""

    def __init__(self, lower: float, **options):
        super().__init__(**options)
        self.lower = lower

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x.clamp(min=self.lower))
        return x


class NetworkQuantizer(XNNPACKQuantizer):
    """XNNPACK's symmetric int8 weights and affine int8 activations, changed in two places.

    - The input of a SiLU or GELU is quantized down to where the activation is 0 and no further, as a fused ReLU does:
      its negative range is about half of the codes otherwise.
    - Squeeze-and-excitation computes its gate in float, on int8 weights: a vector of one value per channel costs no
      time, and one step of a gate's scale changes a whole channel.
    """

    def __init__(self, per_channel: bool, is_qat: bool):
        super().__init__()
        self.config = get_symmetric_quantization_config(per_channel, is_qat)
        self.is_qat = is_qat
        self.set_global(self.config)
        self.set_filter_function(lambda node: not in_gate(node))

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark every node with what its inputs and its output are quantized to."""
        super().annotate(model)
        for node in model.graph.nodes:
            if node.target in SATURATION:
                self._saturate(node.args[0], SATURATION[node.target])
            elif node.target == aten.conv2d.default and in_gate(node):
                weights = {node.args[1]: self.config.weight}
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=weights, _annotated=True)
        return model

    def _saturate(self, source: Node, lower: float) -> None:
        annotation = source.meta.get(Q_ANNOTATION_KEY)
        spec = annotation and annotation.output_qspec
        if isinstance(spec, QuantizationSpec) and all(user.target in SATURATION for user in source.users):
            observer = SaturatingFakeQuantize if self.is_qat else SaturatingHistogramObserver
            annotation.output_qspec = QuantizationSpec(
                dtype=spec.dtype,
                quant_min=spec.quant_min,
                quant_max=spec.quant_max,
                qscheme=spec.qscheme,
                observer_or_fake_quant_ctr=observer.with_args(lower=lower, eps=2**-12),
            )


def in_gate(node: Node) -> bool:
    """Whether a node of an exported graph comes from a squeeze-and-excitation block."""
    return any(kind == GATE for _, kind in node.meta.get("nn_module_stack", {}).values())
