"""Training from corrected weights: the graph to be trained computes what INT8 without training does."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from common.quantization.folding import BATCH_NORM
from common.quantization.graphs import stored
from common.quantization.methods import methods_of
from common.quantization.nodes import input_of
from common.quantization.pt2e import QuantizationSettings, calibrate, prepare_qat, quantize_after_training, set_mode
from common.quantization.ptq_start import start_from_ptq
from common.quantization.simulation import Simulation, fake_quantizations

HW = (8, 12)
SHAPE = (3, *HW)


class Normed(nn.Module):
    """Batch norm behind convolutions of all kinds, and on its own; channels of very different sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.two = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.up, self.three = nn.ConvTranspose2d(6, 4, 2, 2, bias=False), nn.BatchNorm2d(4)
        self.middle, self.alone = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 3, 1)
        for each in self.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean.uniform_(-1, 1)
                each.running_var.uniform_(0.5, 2)
                nn.init.uniform_(each.weight, -2, 2)
                nn.init.uniform_(each.bias, -1, 1)
        with torch.no_grad():
            self.one.weight[2] *= 100
            self.one.bias[2] *= 100
            self.depthwise.weight[2] /= 100

    def forward(self, x):
        x = self.one(self.first(x)).relu()
        x = self.two(self.depthwise(x)).relu()
        x = self.three(self.up(x)).relu()
        return self.last(self.alone(torch.cat([x, self.middle(x)], dim=1)).relu())


class Twice(nn.Module):
    """A module that is called twice, between others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.shared = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.last(self.shared(self.shared(self.first(x).relu())))


def images(count, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *SHAPE, generator=generator) for _ in range(count)]


def started(network, names, per_channel=False, **options):
    """The prepared graph with corrected weights and ranges, and INT8 without training by the same methods."""
    settings, methods = QuantizationSettings(per_channel, **options), methods_of(names, 20)
    prepared = prepare_qat(copy.deepcopy(network), HW, settings)
    start_from_ptq(prepared, network, SHAPE, settings, images(12), methods)
    calibrate(prepared, images(12), methods.ranges)
    return prepared, quantize_after_training(copy.deepcopy(network), SHAPE, settings, images(12), methods)


@functools.cache
def normed(*names, per_channel=False):
    """The network, and what `started` makes of it, which no test changes but for its modes."""
    network = Normed().eval()
    return network, *started(network, names, per_channel)


def decibels(network, graph):
    inputs = images(6, seed=8)
    with torch.no_grad():
        noise = sum((graph(each) - network(each)).square().sum() for each in inputs)
        return 10 * math.log10(sum(network(each).square().sum() for each in inputs) / noise)


def in_float(prepared, x):
    """What a prepared graph gives where nothing is rounded."""
    return Simulation(prepared, fake_quantizations(prepared)).run(x)


@pytest.mark.parametrize(
    ("names", "per_channel"),
    [
        (("equalize",), False),
        (("mse_weights", "mse"), True),
        (("equalize", "adaround", "correct_biases"), True),
    ],
)
def test_it_is_as_near_to_fp32_as_int8_without_training(names, per_channel):
    network, prepared, int8 = normed(*names, per_channel=per_channel)
    assert decibels(network, prepared) == pytest.approx(decibels(network, int8), abs=0.5)


def test_corrected_weights_are_nearer_to_fp32():
    plain, corrected = normed(), normed("equalize")
    assert decibels(*corrected[:2]) > decibels(*plain[:2]) + 3


@pytest.mark.parametrize("training", [False, True], ids=["statistics that run", "statistics of the batch"])
def test_scales_are_moved_between_layers_and_their_batch_norms(training):
    """In float outputs stay, whichever statistics normalise: those that run are still those of what is normalised."""
    _, prepared, _ = normed("equalize")
    _, plain, _ = normed()
    changed = [name for name, value in plain.named_parameters() if not torch.equal(value, prepared.get_parameter(name))]
    assert {"one.weight", "one.bias", "depthwise.weight", "alone.weight", "last.weight"} <= set(changed)
    batch = torch.cat(images(4, seed=9))
    for graph in (plain, prepared):
        set_mode(graph, dropout=False, batch_norm=training, observers=False)
    torch.testing.assert_close(in_float(prepared, batch), in_float(plain, batch), rtol=1e-3, atol=1e-3)


def test_a_corrected_bias_is_in_the_running_mean():
    """That is the mean that training would find: batch norm takes the errors of rounding out by itself."""
    network, prepared, _ = normed("correct_biases")
    for name in ("one", "two", "three"):
        norm, held = network.get_submodule(name), prepared.state_dict()
        assert torch.equal(held[f"{name}.bias"], norm.bias) and torch.equal(held[f"{name}.weight"], norm.weight)
        assert torch.equal(held[f"{name}.running_var"], norm.running_var)
        assert not torch.equal(held[f"{name}.running_mean"], norm.running_mean)
    assert not torch.equal(prepared.state_dict()["last.bias"], network.last.bias)


def test_weights_of_learned_rounding_are_values_of_codes():
    learned, plain = (started(Twice().eval(), names)[0] for names in (["adaround"], []))
    turned = 0
    for name in ("first", "last"):
        codes, nearest = (codes_of(graph, f"{name}.weight") for graph in (learned, plain))
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)
        assert (codes - nearest).abs().max() < 1.02
        turned += int((codes.round() != nearest.round()).sum())
    assert turned > 0


def codes_of(prepared, parameter):
    """The weights that are rounded, in steps of their scale."""
    for node in fake_quantizations(prepared).values():
        source = input_of(node)
        factor = None
        if source.target == torch.ops.aten.mul.Tensor:
            source, factor = input_of(source), source
        if source.op == "get_attr" and source.target == parameter:
            module = prepared.get_submodule(node.target)
            weights = stored(prepared, source).detach()
            if factor is not None:
                norm = next(each for each in prepared.graph.nodes if is_norm_of(each, node))
                gamma, variance = (stored(prepared, input_of(norm, place)).detach() for place in (1, 4))
                weights = weights * (gamma / (variance + norm.args[7]).sqrt()).reshape(-1, 1, 1, 1)
            return weights / module.scale.reshape(-1, *[1] * (weights.dim() - 1))
    raise AssertionError(parameter)


def is_norm_of(norm, quantized):
    """Whether a batch norm is behind the convolution that takes a fake quantization."""
    found = norm if norm.target == BATCH_NORM else None
    while found is not None and quantized not in found.all_input_nodes:
        found = found.args[0] if found.args and isinstance(found.args[0], torch.fx.Node) else None
    return found is not None and found.target == torch.ops.aten.conv2d.default


def test_a_module_that_is_called_twice_keeps_its_weights():
    network = Twice().eval()
    prepared, _ = started(network, ["equalize", "adaround", "correct_biases"])
    held = prepared.state_dict()
    shared = {name: value for name, value in network.state_dict().items() if "shared" in name and value.dim()}
    assert [name for name, value in shared.items() if not torch.equal(held[name], value)] == []
    assert not torch.equal(held["first.weight"], network.first.weight)
    assert decibels(network, prepared) > 25


def test_what_it_starts_from_is_left_as_it_is():
    network, _, _ = normed("equalize", "adaround", "correct_biases", per_channel=True)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in Normed().state_dict().items())


def test_a_module_in_float_and_another_target():
    network = Normed().eval()
    prepared, int8 = started(network, ["equalize", "correct_biases"], True, target="tensorrt", keep_float=("last",))
    assert decibels(network, prepared) == pytest.approx(decibels(network, int8), abs=0.5)
