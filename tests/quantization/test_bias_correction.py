"""Bias correction against its definition: no layer makes a mean error of its own, whatever reaches it."""

import copy

import pytest
import torch
from torch import nn
from torch.fx import Node

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


def own_errors(floats, int8, inputs):
    """The mean error by channel that every layer of `int8` makes of its inputs in float: name -> (C,).

    By a run of the whole graph that keeps all values, as the definition says it.
    """
    exact = {node.name: node for node in floats.graph.nodes}
    found = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n.target in WEIGHTED:
                source = n.args[0].args[0].args[0]  # behind a pair
                given = [get(floats, each) if isinstance(each, Node) else each for each in exact[n.name].args[1:]]
                difference = n.target(self.env[source], *given) - result
                found.setdefault(n.name, []).append(difference.double().transpose(0, 1).flatten(1).mean(dim=1))
            return result

    for image in inputs:
        Keep(int8, garbage_collect_values=False).run(image)
    return {name: torch.stack(each).mean(dim=0) for name, each in found.items()}


def get(graph, node):
    return {**dict(graph.named_parameters()), **dict(graph.named_buffers())}[node.target]


def test_no_layer_is_left_with_a_mean_error_of_its_own(graphs):
    floats, int8 = graphs[0], copy.deepcopy(graphs[1])
    inputs = images(6)
    before = own_errors(floats, int8, inputs)
    assert correct_biases(floats, int8, inputs) == len(before) == 3
    for name, error in own_errors(floats, int8, inputs).items():
        assert before[name].abs().max() > 0.004
        torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=1e-5)


def test_layers_that_are_named_keep_their_biases(graphs):
    int8 = copy.deepcopy(graphs[1])
    last = next(node for node in reversed(int8.graph.nodes) if node.target in WEIGHTED)
    assert correct_biases(graphs[0], int8, images(2), {last.name}) == 2
    kept = next(node for node in reversed(int8.graph.nodes) if node.target in WEIGHTED)
    assert torch.equal(get(int8, kept.args[2]), get(graphs[1], last.args[2]))


class Restoring(nn.Module):
    """A residual branch that takes back most of what is added to its input, as trained branches do."""

    def __init__(self):
        super().__init__()
        self.first, self.branch = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.branch.weight.copy_(-0.9 * torch.eye(3)[:, :, None, None])

    def forward(self, x):
        x = self.first(x)
        return x + self.branch(x)


def test_a_layer_goes_on_making_up_for_errors_of_others():
    """The first layer keeps an error of 0.3: the branch takes 0.27 of it away, and its bias does not give that back."""
    torch.manual_seed(0)
    floats = export_graph(Restoring().eval(), SHAPE)
    int8 = quantize_after_training(Restoring().eval(), SHAPE, QuantizationSettings(), images(4))
    first = next(node for node in int8.graph.nodes if node.target in WEIGHTED)
    with torch.no_grad():
        get(int8, first.args[2]).add_(0.3)
    correct_biases(floats, int8, images(4), {first.name})
    branch = [node for node in int8.graph.nodes if node.target in WEIGHTED][-1]
    bias = next(node for node in floats.graph.nodes if node.name == branch.name).args[2]
    assert (get(int8, branch.args[2]) - get(floats, bias)).abs().max() < 0.05


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
