"""The mean over an image is quantized however it is written, and whether or not XNNPACKQuantizer finds it."""

import pytest
import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils
from torch import nn

from common.quantization.graphs import export_graph
from common.quantization.pt2e import prepare_qat
from common.quantization.settings import QuantizationSettings


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


class Means(nn.Module):
    """A convolution and the mean over some axes of what it gives."""

    def __init__(self, *arguments, **named):
        super().__init__()
        self.first, self.arguments, self.named = nn.Conv2d(3, 4, 3), arguments, named

    def forward(self, x):
        return self.first(x).mean(*self.arguments, **self.named)


POOLS = {
    "over the image": (True, ((2, 3),), {"keepdim": True}),
    "over the image, from behind": (True, ([-1, -2], True), {}),
    "without its axes": (False, ((2, 3),), {}),
    "over one axis": (False, ((3,),), {"keepdim": True}),
    "over channels, too": (False, ((1, 2, 3),), {"keepdim": True}),
    "in another type": (False, ((2, 3), True), {"dtype": torch.float64}),
}


@pytest.mark.parametrize("case", POOLS)
def test_a_mean_over_the_image_is_a_pool(case):
    is_pool, arguments, named = POOLS[case]
    torch.manual_seed(0)
    network, images = Means(*arguments, **named), torch.randn(2, 3, 8, 10)
    graph = export_graph(network, (3, 8, 10))
    assert (torch.ops.aten.adaptive_avg_pool2d.default in {node.target for node in graph.graph.nodes}) == is_pool
    torch.testing.assert_close(graph(images), network(images))
