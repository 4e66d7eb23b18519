"""Convolutions with channels of zeros: the same codes, numbers that kernels want, and no slice where none is needed."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.export.int8_graph import for_target
from common.export.padded_channels import pad_channels
from common.quantization.graphs import stored
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.nodes import input_of
from common.quantization.pt2e import DEQUANTIZE, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.targets import ONNX_RUNTIME

HW = (6, 10)
NOT_PADDED = replace(ONNX_RUNTIME, pads_channels=False)
aten = torch.ops.aten


def both(model, per_channel=False, channels=3):
    """The graph for ONNX Runtime without padding and with it."""
    images = torch.randn(2, channels, *HW, generator=torch.Generator().manual_seed(0))
    quantization = QuantizationSettings(per_channel, fused=False)
    int8 = quantize_after_training(model.eval(), (channels, *HW), quantization, [images])
    return [for_target(copy.deepcopy(int8), target) for target in (NOT_PADDED, ONNX_RUNTIME)]


def same_bits(plain, padded, channels=3):
    """With exact sums, which do not depend on their order."""
    images = 2 * torch.randn(2, channels, *HW, generator=torch.Generator().manual_seed(1))
    outputs = [as_integer_kernels(each)(images) for each in (plain, padded)]
    return torch.equal(*outputs)


def kernels(graph):
    """(outputs, inputs) of the convolutions between codes, in their order."""
    return [tuple(each.shape[:2]) for each in (weights(graph, node) for node in convolutions(graph))]


def convolutions(graph):
    return [node for node in graph.graph.nodes if node.target == aten.conv2d.default]


def weights(graph, node):
    return stored(graph, input_of(input_of(node, 1)))


def count(graph, operator):
    return sum(node.target == operator for node in graph.graph.nodes)


class Block(nn.Module):
    """A residual block of sums of dilated convolutions, as ESPNet's, with a batch norm and a PReLU of its own."""

    def __init__(self, first, other):
        super().__init__()
        channels = first + 2 * other
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.reduce = nn.Conv2d(channels, other, 1)
        self.first = nn.Conv2d(other, first, 3, padding=1)
        self.dilated = nn.ModuleList(nn.Conv2d(other, other, 3, padding=d, dilation=d) for d in (1, 2))
        self.norm, self.act = nn.BatchNorm2d(channels), nn.PReLU(channels)
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.reduce(x)
        a, b = (each(y) for each in self.dilated)
        y = torch.cat([self.first(y), a, a + b], 1)
        return self.head(self.act(self.norm(x + y)))


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_block_of_sums_keeps_its_bits(per_channel):
    torch.manual_seed(0)
    plain, padded = both(Block(18, 17), per_channel)
    assert same_bits(plain, padded)
    assert kernels(plain) == [(52, 3), (17, 52), *[(17, 17)] * 2, (18, 17), (5, 52)]
    assert kernels(padded) == [(52, 4), (20, 52), *[(20, 20)] * 3, (16, 52)]
    assert count(padded, aten.constant_pad_nd.default) == 1  # of the image
    assert count(padded, aten.slice.Tensor) == 4  # of the three that are joined, and of the output: none before a sum


def test_all_parts_of_a_concatenation_are_cut_but_what_pads_it():
    """7 channels of the 16 of the first, and of the last so many as the convolution behind it wants."""

    class Joined(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 7, 1), nn.Conv2d(3, last, 1), nn.Conv2d(7 + last, 16, 3, padding=1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    for last, wanted, slices in ((10, 20, 2), (9, 16, 2), (11, 20, 2), (16, 24, 1), (17, 24, 2)):
        plain, padded = both(Joined(last))
        assert same_bits(plain, padded)
        assert kernels(padded)[-1] == (16, wanted)
        assert count(padded, aten.slice.Tensor) == slices, last


def test_depthwise_convolutions_compute_sixteen_channels():
    """Of what a convolution gives, of what is padded for them, and again behind a sum of their own."""

    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 19, 1)
            self.one, self.other = (nn.Conv2d(19, 19, 3, padding=1, groups=19) for _ in range(2))
            self.of_image = nn.Conv2d(3, 3, 3, padding=1, groups=3)
            self.last = nn.Conv2d(22, 4, 1)

        def forward(self, x):
            y = self.first(x)
            return self.last(torch.cat([self.one(y) + self.other(y), self.of_image(x)], 1))

    plain, padded = both(Depthwise())
    assert same_bits(plain, padded)
    assert kernels(padded) == [(32, 16), (32, 1), (32, 1), (16, 1), (16, 24)]
    groups = [node.args[6] for node in convolutions(padded) if len(node.args) > 6]
    assert groups == [32, 32, 16]


class Larger(nn.Module):
    """Two transposed convolutions of 2x2, behind the first of which there is what becomes depthwise."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.up = nn.Conv2d(4, 16, 1), nn.ConvTranspose2d(16, channels, 2, 2)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.PReLU(channels)
        self.last = nn.ConvTranspose2d(channels, 5, 2, 2, bias=False)

    def forward(self, x):
        return self.last(self.act(self.norm(self.up(self.first(x)).relu())))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("channels", "first", "depthwise", "last"),  # of the last its inputs
    [
        (12, [(32, 16)] * 2, 16, 16),
        (25, [(64, 16)] * 2, 32, 32),
        (17, [(36, 16)] * 2, 32, 32),  # 32 of a pixel were too many: padded behind
        (32, [(64, 16)] * 2, 32, 32),
    ],
)
def test_pixels_of_a_transposed_convolution_are_padded_before_they_are_placed(
    channels, first, depthwise, last, per_channel
):
    torch.manual_seed(0)
    plain, padded = both(Larger(channels), per_channel, channels=4)
    assert same_bits(plain, padded, channels=4)
    shapes = kernels(padded)
    assert shapes[1:3] == first and shapes[3:5] == [(depthwise, 1)] * 2
    assert shapes[5][1] == last
    assert count(padded, aten.constant_pad_nd.default) == (channels == 17)


@pytest.mark.parametrize("channels", [5, 12, 32])
def test_pixels_are_where_the_transposed_convolution_puts_them(channels):
    """Against the graph before all rewrites."""
    torch.manual_seed(0)
    images = torch.randn(2, 4, *HW)
    int8 = quantize_after_training(Larger(channels).eval(), (4, *HW), QuantizationSettings(fused=False), [images])
    rewritten = for_target(copy.deepcopy(int8), ONNX_RUNTIME)
    assert not count(rewritten, aten.conv_transpose2d.input)
    assert (int8(images) == rewritten(images)).float().mean() > 0.99  # float sums fall on either side of a half


@pytest.mark.parametrize("per_channel", [False, True])
def test_few_output_channels_become_sixteen_where_there_are_pixels(per_channel):
    """The last convolution of three, not the one of a mean, whose map is one pixel."""
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 3, 1))
    network = nn.Sequential(nn.Conv2d(4, 20, 1), nn.ReLU(), nn.Conv2d(20, 3, 3, padding=1))
    for model, outputs in ((network, 16), (nn.Sequential(*network[:2], squeeze), 3)):
        plain, padded = both(model, per_channel, channels=4)
        assert pad_channels(copy.deepcopy(plain)) == (outputs == 16)
        assert same_bits(plain, padded, channels=4)
        assert kernels(padded) == [(20, 4), (outputs, 20)]


def test_what_takes_all_channels_together_gets_its_own():
    """A softmax over channels, a transposed convolution, grouped ones, and a gate that a mean of others makes."""

    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
            self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
            self.up = nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1)

        def forward(self, x):
            x = self.first(x)
            y = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
            return self.up(self.grouped(y)), torch.softmax(self.first.weight.sum() * y, 1)

    plain, padded = both(Others())
    images = torch.randn(2, 3, *HW)
    for one, other in zip(plain(images), padded(images), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-5)


def test_maps_of_one_channel_and_joined_rows_stay_what_they_are():
    """A map that is multiplied with 12 channels, both of which have 16 then, and rows that are joined, not channels."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.map, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(12, 6, 3)
            self.next = nn.Conv2d(6, 16, 1)

        def forward(self, x):
            y = self.last(self.first(x) * self.map(x))
            return self.next(torch.cat([y, y + 1], 2))

    plain, padded = both(Attention())
    assert same_bits(plain, padded)
    assert kernels(padded) == [(16, 4), (16, 4), (16, 12), (16, 8)]


def test_only_whole_pairs_are_padded():
    """A convolution that is kept in float, and numbers that kernels want anyway."""
    model = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 20, 1), nn.ReLU(), nn.Conv2d(20, 16, 1))
    plain, padded = both(model, channels=4)
    assert str(plain.graph) == str(padded.graph)
    images = [torch.randn(2, 4, *HW)]
    kept = QuantizationSettings(fused=False, keep_float=("0",))
    model = nn.Sequential(nn.Conv2d(4, 7, 1), nn.ReLU(), nn.Conv2d(7, 16, 1))
    int8 = for_target(quantize_after_training(model.eval(), (4, *HW), kept, images), ONNX_RUNTIME)
    assert [node.args[0].target == DEQUANTIZE for node in convolutions(int8)] == [False, True]
    assert tuple(stored(int8, input_of(convolutions(int8)[0], 1)).shape[:2]) == (7, 4)
    assert tuple(weights(int8, convolutions(int8)[1]).shape[:2]) == (16, 8)


LAYERS = ("conv", "depthwise", "norm", "prelu", "relu", "hardswish", "pool", "sum", "cat", "shared", "up")


class Random(nn.Module):
    """Layers of any numbers of channels, one after the other; some take what was there before, too."""

    def __init__(self, layers):
        super().__init__()
        self.kinds, self.modules_of, channels, before = [], nn.ModuleList(), 3, 3
        for kind, number in [("conv", 5), *layers, ("conv", 3)]:
            now = channels
            made = {
                "conv": lambda now=now, number=number: nn.Conv2d(now, number, 3, padding=1),
                "depthwise": lambda now=now: nn.Conv2d(now, now, 3, padding=1, groups=now),
                "norm": lambda now=now: nn.BatchNorm2d(now),
                "prelu": lambda now=now: nn.PReLU(now),
                "relu": nn.ReLU,
                "hardswish": nn.Hardswish,
                "pool": lambda: nn.MaxPool2d(3, 1, 1),
                "sum": lambda now=now, before=before: nn.Conv2d(before, now, 1),
                "cat": nn.Identity,
                "shared": lambda now=now: nn.Conv2d(now, now, 1),
                "up": lambda now=now: nn.ConvTranspose2d(now, now, 2, stride=1, padding=0),
            }[kind]()
            self.kinds.append(kind)
            self.modules_of.append(made)
            if kind == "conv":
                before, channels = channels, number
            elif kind == "cat":
                channels += before

    def forward(self, x):
        before = x
        for kind, module in zip(self.kinds, self.modules_of, strict=True):
            if kind == "conv":
                before, x = x, module(x)
            elif kind == "sum":
                x = x + module(before)
            elif kind == "cat":
                x = torch.cat([x, before], 1)
            elif kind == "shared":
                x = module(module(x))
            elif kind == "up":
                x = module(x)[..., :-1, :-1]
            else:
                x = module(x)
        return x


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    layers=st.lists(st.tuples(st.sampled_from(LAYERS), st.integers(1, 37)), min_size=1, max_size=5),
    per_channel=st.booleans(),
)
def test_any_row_of_layers_keeps_its_bits(layers, per_channel):
    torch.manual_seed(0)
    assert same_bits(*both(Random(layers), per_channel))
