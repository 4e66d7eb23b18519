"""Bias correction against its definition: the mean output of every layer is that of the float network."""

import copy

import pytest
import torch
from torch import nn

from common.quantization.bias_correction import correct_biases
from common.quantization.folding import fold_exported_batch_norm
from common.quantization.graphs import WEIGHTED, export_graph
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings

SHAPE = (3, 8, 12)


class Biased(nn.Module):
    """Layers with a bias and without one, a ReLU, which makes the noise of rounding a mean error, and batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x):
        return self.up(self.second(self.first(x)).relu())


def images(count):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, *SHAPE, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module", params=[False, True], ids=["per tensor", "per channel"])
def graphs(request):
    network = Biased().eval()
    floats = export_graph(copy.deepcopy(network), SHAPE)
    fold_exported_batch_norm(floats)
    settings = QuantizationSettings(request.param)
    int8 = quantize_after_training(copy.deepcopy(network), SHAPE, settings, images(4))
    for buffer in int8.buffers():  # a coarser rounding than INT8's, whose mean errors are small here
        if buffer.dtype == torch.int8:
            buffer.copy_(buffer // 16 * 16)
    return floats, int8


def means_of_layers(graph, inputs):
    """The mean output of each channel of every layer, by a run of the whole graph for each: name -> (C,)."""
    found = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n.target in WEIGHTED:
                found.setdefault(n.name, []).append(result.double().transpose(0, 1).flatten(1).mean(dim=1))
            return result

    for image in inputs:
        Keep(graph).run(image)
    return {name: torch.stack(each).mean(dim=0) for name, each in found.items()}


def test_the_mean_output_of_every_layer_is_that_of_the_float_network(graphs):
    floats, int8 = graphs[0], copy.deepcopy(graphs[1])
    inputs = images(6)
    expected, before = means_of_layers(floats, inputs), means_of_layers(int8, inputs)
    assert correct_biases(floats, int8, inputs) == len(expected) == 3
    after = means_of_layers(int8, inputs)
    for name, mean in expected.items():
        assert (before[name] - mean).abs().max() > 0.01
        torch.testing.assert_close(after[name], mean, rtol=1e-4, atol=1e-5)


def test_outputs_come_nearer_to_the_float_ones_on_other_images(graphs):
    floats, int8 = graphs[0], copy.deepcopy(graphs[1])
    others = images(12)[6:]

    def error():
        return sum((int8(image) - floats(image)).square().sum().item() for image in others)

    before = error()
    correct_biases(floats, int8, images(6))
    assert error() < 0.8 * before


def test_codes_and_scales_stay(graphs):
    int8 = copy.deepcopy(graphs[1])
    codes = {name: value.clone() for name, value in int8.state_dict().items() if value.dtype == torch.int8}
    correct_biases(graphs[0], int8, images(2))
    assert all(torch.equal(int8.state_dict()[name], value) for name, value in codes.items())
