"""The mean over an image is quantized whether or not XNNPACKQuantizer finds it, which depends on the PyTorch."""

from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils
from torch import nn

from common.quantization.pt2e import QuantizationSettings, prepare_qat


class Squeeze(nn.Module):
    """An image times a gate that is computed from its mean, as in squeeze-and-excitation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(x))


def quantized() -> dict[str, list[str]]:
    """Operator -> the kinds of nodes that it takes."""
    prepared = prepare_qat(Squeeze(), (32, 64), QuantizationSettings())
    return {
        str(node.target): [source.op for source in node.all_input_nodes]
        for node in prepared.graph.nodes
        if node.op == "call_function"
    }


def test_a_pool_is_quantized_also_where_the_quantizer_misses_it(monkeypatch):
    """As on PyTorch 2.11."""
    found = quantized()
    assert found["aten.adaptive_avg_pool2d.default"] == ["call_module"]
    monkeypatch.setitem(xnnpack_quantizer_utils.OP_TO_ANNOTATOR, "adaptive_avg_pool2d", lambda *_: None)
    assert quantized() == found
