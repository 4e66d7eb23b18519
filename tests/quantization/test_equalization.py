"""Scales that are moved between layers: outputs stay, and per-tensor INT8 stands channels of other sizes."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.quantization.channel_groups import FIXED, channel_groups
from common.quantization.equalization import equalize
from common.quantization.folding import fold_exported_batch_norm
from common.quantization.graphs import export_graph
from common.quantization.methods import methods_of
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings

HW = (8, 12)


def images(count, channels=3):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, channels, *HW, generator=generator) for _ in range(count)]


def exported(network, channels=3):
    graph = export_graph(network.eval(), (channels, *HW))
    fold_exported_batch_norm(graph)
    return graph


class Chain(nn.Module):
    """Two convolutions with an activation between them that scales go through, and a third behind a sum."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.activation = activation

    def forward(self, x):
        return self.second(self.activation(self.depthwise(self.activation(self.first(x)))))


class Everything(nn.Module):
    """Sums, concatenations, groups, transposed and linear layers, pools, batch norm on its own, and a SiLU between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.one, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=2, dilation=2, bias=False)
        self.norm, self.slopes = nn.BatchNorm2d(8), nn.PReLU(8)
        self.smooth = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.last = nn.ConvTranspose2d(6, 4, 2, 2)
        self.flat = nn.Linear(4, 5)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.grouped(x)
        x = self.slopes(self.norm(torch.cat([self.one(x), self.one(x) + self.other(x)], dim=1)))
        x = nn.functional.silu(self.smooth(nn.functional.max_pool2d(x, 2)))
        x = self.last(nn.functional.leaky_relu(self.up(x), 0.2))
        return self.flat(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)), x


def test_channels_of_a_chain_are_groups_and_its_ends_are_fixed():
    graph = exported(Chain(nn.ReLU()))
    found = channel_groups(graph)
    groups = {node.name: found.tensors[node].tolist() for node in found.tensors}
    assert groups["x"] == [FIXED] * 3 and groups["conv2d_2"] == [FIXED] * 4
    assert groups["conv2d"] == groups["relu"] == list(range(1, 7))
    assert groups["conv2d_1"] == groups["relu_1"] == list(range(7, 13))
    assert found.count == 13
    depthwise = found.layers[1]
    assert np.array_equal(depthwise.ins, depthwise.outs)  # each channel is made of its own


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Hardswish(), nn.Sigmoid()])
def test_no_scale_goes_through_what_is_not_homogeneous(activation):
    graph = exported(Chain(activation))
    before = [value.clone() for value in graph.state_dict().values()]
    assert equalize(graph, images(2), per_channel=False) == {}
    assert all(map(torch.equal, before, graph.state_dict().values()))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "network",
    [Chain(nn.ReLU()), Chain(nn.PReLU(6)), Chain(nn.LeakyReLU(0.1)), Chain(nn.Identity()), Everything()],
    ids=["relu", "prelu", "leaky_relu", "linear", "everything"],
)
def test_outputs_stay_the_same(network, per_channel):
    graph = exported(copy.deepcopy(network))
    inputs = images(3)
    before = [graph(image) for image in inputs]
    scales = equalize(graph, inputs, per_channel)
    assert any(bool((each != 1).any()) for each in scales.values())
    for image, expected in zip(inputs, before, strict=True):
        torch.testing.assert_close(graph(image), expected, rtol=1e-4, atol=1e-5)


def test_scales_that_were_pulled_apart_are_found_again():
    """A channel of 1000-fold size has the weights of the others again, within the noise that both cause."""
    network = scaled(Chain(nn.ReLU()), 1000.0)
    graph = exported(network)
    equalize(graph, images(4), per_channel=False)
    weights = [value for name, value in graph.state_dict().items() if "weight" in name]
    rows = weights[0].flatten(1).abs().amax(dim=1)
    assert rows.max() / rows.min() < 20


def scaled(network, factor):
    """A channel of each of the first two layers made larger, and the next layer smaller for it."""
    with torch.no_grad():
        network.first.weight[2] *= factor
        network.first.bias[2] *= factor
        network.depthwise.weight[2] /= factor
        network.depthwise.weight[4] *= factor
        network.depthwise.bias[4] *= factor
        network.second.weight[:, 4] /= factor
    return network.eval()


def decibels(network, methods):
    inputs = images(24)
    scored, calibration = inputs[:8], inputs[8:]
    with torch.no_grad():
        expected = [network(image) for image in scored]
    int8 = quantize_after_training(
        copy.deepcopy(network), (3, *HW), QuantizationSettings(), calibration, methods_of(methods)
    )
    with torch.no_grad():
        noise = sum((int8(image) - one).square().sum() for image, one in zip(scored, expected, strict=True))
    return 10 * math.log10(sum(one.square().sum() for one in expected) / noise)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU(6)], ids=["relu", "prelu"])
def test_per_tensor_int8_of_a_network_scaled_1000_fold_is_that_of_the_unscaled_one(activation):
    plain = Chain(activation).eval()
    apart = scaled(copy.deepcopy(plain), 1000.0)
    torch.testing.assert_close(apart(images(1)[0]), plain(images(1)[0]), rtol=1e-3, atol=1e-4)
    before = decibels(plain, [])
    assert decibels(apart, []) < before - 6
    assert decibels(apart, ["equalize"]) > before - 1


def test_a_channel_that_is_always_0_takes_no_scale_that_is_not_finite():
    network = Chain(nn.ReLU()).eval()
    with torch.no_grad():
        network.first.weight[1] = 0
        network.first.bias[1] = -1
        network.second.weight[:, 3] = 0
    graph = exported(network)
    expected = graph(images(1)[0])
    equalize(graph, images(3), per_channel=False)
    assert all(bool(value.isfinite().all()) for value in graph.state_dict().values())
    torch.testing.assert_close(graph(images(1)[0]), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_module_that_is_called_twice_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.shared, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.last(self.shared(self.shared(x).relu()).relu())

    graph = exported(Twice())
    shared = graph.state_dict()["shared.weight"].clone()
    expected = graph(images(1)[0])
    equalize(graph, images(2), per_channel=False)
    assert torch.equal(graph.state_dict()["shared.weight"], shared)
    torch.testing.assert_close(graph(images(1)[0]), expected)
