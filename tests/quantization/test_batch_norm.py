"""Folding batch norm into convolutions, against the search of PyTorch's own conversion."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import disable_fake_quant
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from common.quantization.batch_norm import fold_batch_norm
from common.quantization.folding import BATCH_NORM, fold_exported_batch_norm
from common.quantization.graphs import export_graph
from common.quantization.methods import methods_of
from common.quantization.pt2e import (
    calibrate,
    convert,
    prepare_qat,
    quantize_after_training,
    set_evaluation_mode,
    set_mode,
)
from common.quantization.ptq_start import start_from_ptq
from common.quantization.settings import QuantizationSettings


@pytest.fixture(params=[False, True], ids=["per tensor", "per channel"])
def prepared(request):
    """Convolutions with and without a bias, one depthwise, each with a batch norm that has seen images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 3, 1),),
    )
    for norm in (network[1], network[4]):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -1.0, 1.0)
    graph = prepare_qat(network, (16, 16), QuantizationSettings(per_channel=request.param))
    set_mode(graph, dropout=True, batch_norm=True, observers=True)
    graph(3 * torch.randn(4, 3, 16, 16) + 1)
    return graph


def test_a_folded_graph_computes_the_same(prepared):
    images = torch.randn(2, 3, 16, 16)
    set_evaluation_mode(prepared)
    expected = prepared(images)
    assert fold_batch_norm(prepared) == (2, 0)
    assert not [node for node in prepared.graph.nodes if node.target == BATCH_NORM]
    torch.testing.assert_close(prepared(images), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_int8_is_that_of_the_own_search_of_pytorch(prepared):
    images = torch.randn(2, 3, 16, 16)
    calibrate(prepared, [images])
    before = copy.deepcopy(prepared.state_dict())
    ours, theirs = convert(prepared), convert_pt2e(copy.deepcopy(prepared))
    assert torch.equal(ours(images), theirs(images))
    assert [node.target for node in ours.graph.nodes if node.op == "call_function"] == [
        node.target for node in theirs.graph.nodes if node.op == "call_function"
    ]
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


class Anywhere(nn.Module):
    """Batch norms first of all, behind convolutions of both kinds, behind one that is used twice, and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, eps=1e-3, momentum=0.03) for count in (3, 8, 8, 6, 6))
        self.plain = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.uneven = nn.ConvTranspose2d(8, 6, 2, 2)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -1.0, 1.0)
            nn.init.uniform_(norm.running_mean, -1.0, 1.0)
            nn.init.uniform_(norm.running_var, 1e-4, 2.0)  # near eps, so that another one shows

    def forward(self, x):
        x = self.plain(self.norms[0](x))
        x = self.norms[1](x) + x
        x = torch.relu(self.norms[2](self.up(x)))
        x = self.norms[3](self.uneven(x))
        return self.norms[4](x + x.relu())


@pytest.fixture
def anywhere():
    torch.manual_seed(0)
    return Anywhere().eval()


def test_a_float_graph_without_its_batch_norms_computes_the_same(anywhere):
    images = torch.randn(2, 3, 8, 8)
    graph = export_graph(anywhere, (3, 8, 8))
    assert fold_exported_batch_norm(graph) == (2, 3)  # of both transposed convolutions; the others stand alone
    assert not [node for node in graph.graph.nodes if node.target == BATCH_NORM]
    torch.testing.assert_close(graph(images), anywhere(images), rtol=0, atol=1e-5)


def test_a_prepared_graph_computes_what_the_network_does_for_any_eps(anywhere):
    images = torch.randn(2, 3, 8, 8)
    expected = anywhere(images)
    graph = prepare_qat(copy.deepcopy(anywhere), (8, 8), QuantizationSettings())
    set_evaluation_mode(graph)
    graph.apply(disable_fake_quant)
    torch.testing.assert_close(graph(images), expected, rtol=0, atol=1e-5)
    assert {node.args[6] for node in graph.graph.nodes if node.target == BATCH_NORM} == {0.03}


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_factor_of_zero_is_trained_on(per_channel):
    """Sparse training leaves such channels; what training divides by the factor would be no number."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        network[1].weight[2] = 0
        network[1].bias.uniform_(0.5, 1)
    images, settings = torch.randn(4, 3, 12, 12), QuantizationSettings(per_channel)
    expected = network(images)
    graph = prepare_qat(copy.deepcopy(network), (12, 12), settings)
    start_from_ptq(graph, network, (3, 12, 12), settings, [images], methods_of(["correct_biases"], 1))
    set_mode(graph, dropout=True, batch_norm=True, observers=True)
    graph(images).square().sum().backward()
    assert all(each.grad.isfinite().all() for each in graph.parameters())
    calibrate(graph, [images])
    for model in (graph, convert(graph)):
        assert 10 * torch.log10(expected.square().sum() / (expected - model(images)).square().sum()) > 20


def test_int8_has_no_batch_norm_left_wherever_it_stood(anywhere):
    graph = prepare_qat(anywhere, (8, 8), QuantizationSettings())
    set_mode(graph, dropout=True, batch_norm=True, observers=True)
    graph(torch.randn(4, 3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    calibrate(graph, [images])
    int8 = convert(graph)
    assert not [node for node in int8.graph.nodes if node.target == BATCH_NORM]
    trained, actual = graph(images), int8(images)
    assert 10 * torch.log10(trained.square().sum() / (trained - actual).square().sum()) > 40


@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_norm_without_statistics_is_refused(trained):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="without running statistics has no fixed form; build it with track_running"):
        if trained:
            prepare_qat(network, (8, 8), QuantizationSettings())
        else:
            quantize_after_training(network, (3, 8, 8), QuantizationSettings(), [torch.randn(1, 3, 8, 8)])
