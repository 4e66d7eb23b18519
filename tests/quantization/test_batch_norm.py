"""Folding batch norm into convolutions, against the search of PyTorch's own conversion."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from common.quantization.batch_norm import BATCH_NORM, fold_batch_norm
from common.quantization.pt2e import (
    QuantizationSettings,
    calibrate,
    convert,
    prepare_qat,
    set_evaluation_mode,
    set_mode,
)


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
    assert fold_batch_norm(prepared) == 2
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
