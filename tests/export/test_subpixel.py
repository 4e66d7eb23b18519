"""Transposed convolutions rewritten as convolutions and shuffles compute the same."""

import copy

import pytest
import torch
from torch import nn

from common.export.subpixel import (
    CHANNELS_FIRST,
    shuffle_planes,
    shuffle_rows,
    use_subpixel_convolutions,
    with_subpixel_convolutions,
)
from common.quantization.graphs import export_graph
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from models.fuse import fuse_upsampling
from models.scene_seg import SceneSegNetwork

aten = torch.ops.aten
SHUFFLES = pytest.mark.parametrize("shuffle", [shuffle_rows, shuffle_planes])
FORMS = pytest.mark.parametrize("form", [{"kernel_size": 2}, {"kernel_size": 4, "padding": 1}])


def operators(graph: torch.fx.GraphModule) -> list:
    return [node.target for node in graph.graph.nodes]


@SHUFFLES
@FORMS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 3)])
@torch.no_grad()
def test_every_size_with_its_border(shuffle, form, bias, size):
    """In float64, where the order of the sums shows far below the tolerance."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(3, 5, stride=2, bias=bias, **form)).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    graph = torch.export.export(network, (images,)).module()
    assert use_subpixel_convolutions(graph, shuffle) == 1
    assert aten.conv_transpose2d.input not in operators(graph)
    assert torch.allclose(graph(images), network(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "form",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 4, "stride": 2},
        {"kernel_size": 2, "stride": 1},
        {"kernel_size": 4, "stride": 2, "padding": 1, "output_padding": 1},
        {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
        {"kernel_size": (2, 4), "stride": 2},
    ],
)
def test_other_transposed_convolutions_stay(form):
    network = nn.Sequential(nn.ConvTranspose2d(4, 4, **form)).eval()
    graph = export_graph(network, (4, 6, 6))
    assert use_subpixel_convolutions(graph, shuffle_rows) == 0
    assert aten.conv_transpose2d.input in operators(graph)


@SHUFFLES
@FORMS
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_is_the_same_in_every_bit(shuffle, form, per_channel):
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(3, 5, stride=2, **form), nn.GELU(), nn.Conv2d(5, 2, 1)).eval()
    images = [torch.randn(2, 3, 6, 8) for _ in range(3)]
    settings = QuantizationSettings(per_channel=per_channel, fused=False)
    int8 = quantize_after_training(network, (3, 6, 8), settings, images)
    rewritten = copy.deepcopy(int8)
    assert use_subpixel_convolutions(rewritten, shuffle) == 1
    assert torch.equal(int8(images[0]), rewritten(images[0]))
    read = {node.target for node in rewritten.graph.nodes if node.op == "get_attr"}
    assert {*dict(rewritten.named_buffers()), *dict(rewritten.named_parameters())} == read  # or a file holds both forms


def test_a_relu_stands_behind_its_convolution_and_not_behind_the_shuffle():
    """Where ONNX Runtime takes it as a part of the int8 convolution; elsewhere it would compute both in float."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    images = [torch.randn(2, 3, 6, 8) for _ in range(3)]
    int8 = quantize_after_training(network, (3, 6, 8), QuantizationSettings(), images)
    rewritten = copy.deepcopy(int8)
    assert use_subpixel_convolutions(rewritten, shuffle_rows) == 1
    assert torch.equal(int8(images[0]), rewritten(images[0]))
    (relu,) = [node for node in rewritten.graph.nodes if node.target == aten.relu.default]
    assert relu.args[0].target == aten.conv2d.default


@torch.no_grad()
def test_a_fused_network_has_convolutions_alone_and_its_transposes_before_them():
    """A transpose in front of a sum or an activation would be a pass over the whole tensor in ONNX Runtime."""
    torch.manual_seed(0)
    network = fuse_upsampling(SceneSegNetwork(1 / 16)).eval()
    graph = with_subpixel_convolutions(network, (3, 64, 96))
    images = torch.randn(2, 3, 64, 96)
    assert torch.allclose(graph(images), network(images), rtol=0, atol=1e-6)
    assert aten.conv_transpose2d.input not in operators(graph)
    back = [
        node
        for node in graph.graph.nodes
        if node.target == aten.permute.default and list(node.args[1]) == CHANNELS_FIRST
    ]
    assert len(back) == 5
    assert all(user.target == aten.conv2d.default for node in back for user in node.users)
