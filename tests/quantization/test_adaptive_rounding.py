"""Learned rounding against all roundings of a small layer: codes stay next to the weights, and the error falls."""

import copy
import itertools

import pytest
import torch
from torch import nn

from common.quantization import adaptive_rounding
from common.quantization.adaptive_rounding import learn_rounding
from common.quantization.folding import fold_exported_batch_norm
from common.quantization.graphs import export_graph
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings

SHAPE = (4, 6, 8)


def correlated(count):
    """Images whose channels say nearly the same: rounding errors that cancel cost nothing there."""
    generator = torch.Generator().manual_seed(5)
    base = torch.rand(count, 1, *SHAPE[1:], generator=generator)
    return list((base + 0.05 * torch.rand(count, *SHAPE, generator=generator)).split(1))


class Three(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 2, 1))
        )

    def forward(self, x):
        return self.layers(x)


def both(network, per_channel, inputs):
    """The float graph and the converted one, whose weights have 16 codes: rounding them is what costs."""
    floats = export_graph(copy.deepcopy(network), SHAPE)
    fold_exported_batch_norm(floats)
    int8 = quantize_after_training(copy.deepcopy(network), SHAPE, QuantizationSettings(per_channel), inputs)
    return floats, coarse(int8, 16)


def coarse(int8, factor):
    """The same with weights in steps of `factor` times the size."""
    for node in int8.graph.nodes:
        if "dequantize" not in str(node.target) or node.args[0].op != "get_attr":
            continue
        codes = int8.get_buffer(node.args[0].target)
        codes.copy_((codes.float() / factor).round())
        if isinstance(node.args[1], float):
            node.update_arg(1, node.args[1] * factor)
        else:
            int8.get_buffer(node.args[1].target).mul_(factor)
    int8.recompile()
    return int8


def error(floats, int8, inputs):
    return sum((int8(image) - floats(image)).square().sum().item() for image in inputs)


@pytest.mark.parametrize("per_channel", [False, True])
def test_it_comes_nearer_to_the_float_network_than_the_nearest_codes(per_channel):
    inputs = correlated(40)
    floats, int8 = both(Three().eval(), per_channel, inputs[:32])
    before = error(floats, int8, inputs[32:])
    codes = {name: value.clone() for name, value in int8.state_dict().items() if value.dtype == torch.int8}
    turned = learn_rounding(floats, int8, inputs[:32], seconds=60)
    # 0.28 and 0.50 were found; of 8 images 0.34 and 0.52, with another processor's sums 0.37 and 0.60. Weights that are
    # not rounded leave 0.05 per tensor: it is the learning that ends here. 300 steps of one image reach 0.27 and 0.44,
    # but were 0.35 dB worse on a small ESPNet, whose images differ more
    assert error(floats, int8, inputs[32:]) < 0.55 * before
    moved = [(int8.state_dict()[name].int() - value.int()).abs() for name, value in codes.items()]
    assert max(each.max() for each in moved) == 1
    assert sum((each > 0).sum() for each in moved) == turned > 0


def test_a_block_that_learns_nothing_better_keeps_the_nearest(monkeypatch):
    """Steps that are far too large choose at random, which is worse than what was there."""
    monkeypatch.setattr(adaptive_rounding, "RATE", 1000.0)
    inputs = correlated(8)
    floats, int8 = both(Three(3).eval(), False, inputs)
    before = {name: value.clone() for name, value in int8.state_dict().items()}
    assert learn_rounding(floats, int8, inputs, seconds=60) == 0
    assert all(torch.equal(int8.state_dict()[name], value) for name, value in before.items())


def test_it_finds_nearly_the_best_of_all_roundings_of_a_small_layer():
    torch.manual_seed(2)
    network, inputs = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False)).eval(), correlated(8)
    floats, int8 = both(network, False, inputs)
    learn_rounding(floats, int8, inputs, seconds=60)
    found = error(floats, int8, inputs)
    pair = next(node for node in int8.graph.nodes if "dequantize" in str(node.target) and node.args[0].op == "get_attr")
    codes = int8.get_buffer(pair.args[0].target)
    floor = (network[0].weight / pair.args[1]).floor()
    every = []
    for choice in itertools.product((0.0, 1.0), repeat=codes.numel()):
        codes.copy_((floor + torch.tensor(choice).reshape(codes.shape)).clamp(-127, 127))
        every.append(error(floats, int8, inputs[:2]))
    best = torch.tensor(list(itertools.product((0.0, 1.0), repeat=codes.numel()))[every.index(min(every))])
    codes.copy_((floor + best.reshape(codes.shape)).clamp(-127, 127))
    assert found < 1.5 * error(floats, int8, inputs)


def test_without_time_all_stays(caplog):
    inputs = correlated(4)
    floats, int8 = both(Three().eval(), False, inputs)
    before = {name: value.clone() for name, value in int8.state_dict().items()}
    with caplog.at_level("INFO"):
        assert learn_rounding(floats, int8, inputs, seconds=0) == 0
    assert "ended by its time limit of 0 s" in caplog.text
    assert all(torch.equal(int8.state_dict()[name], value) for name, value in before.items())
