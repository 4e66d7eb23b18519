"""Channels that move together: those of networks that are known by hand, and of every operator that people's have."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.channels import weight_axes
from common.pruning.channels import find_blocks
from common.pruning.slicing import without_channels
from tests.export.test_any_graph import CHANNELS, GROUPS, OPERATORS, Chain, built, conv, images

SHAPE = (3, 22, 34)


class Residual(nn.Module):
    """What ties channels, as a sum, a gate or a depthwise convolution; and a concatenation, which does not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.expand = nn.Sequential(nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10), nn.PReLU(10))
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.reduce, self.restore = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.project = nn.Conv2d(10, 6, 1)
        self.side = nn.ConvTranspose2d(6, 5, 1)
        self.last = nn.Conv2d(11, 3, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * self.restore(self.reduce(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.project(y)
        return self.last(torch.cat([x, self.side(x)], dim=1))


class Numbers(nn.Module):
    """Maps, flattened for linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 15, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.third(self.second(F.adaptive_avg_pool2d(self.first(x), (3, 5)).relu().flatten(1)).tanh())


class Held(nn.Module):
    """Numbers of channels that stand in the code, or that all channels of a place take part in."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 8, 1) for _ in range(4))
        self.norm, self.ramp = nn.GroupNorm(2, 8), nn.Parameter(torch.ones(8, 1, 1))
        self.last = nn.Conv2d(8 + 8 + 8 + 4, 3, 1)

    def forward(self, x):
        viewed = self.a(x).reshape(-1, 2, 4, *x.shape[2:]).flip(1).reshape(-1, 8, *x.shape[2:])
        half, _ = self.d(x).split(4, dim=1)
        return self.last(torch.cat([viewed, self.norm(self.b(x)), self.c(x) * self.ramp, half], dim=1))


def described(model):
    return {block.makers: (block.size, block.takers) for block in find_blocks(model, SHAPE)}


def test_what_ties_channels_and_what_does_not():
    assert described(built(Residual)) == {
        ("stem.0", "project"): (6, ("expand.0", "side", "last")),
        ("expand.0", "restore"): (10, ("reduce", "project")),
        ("reduce",): (4, ("restore",)),
        ("side",): (5, ("last",)),
    }


def test_a_channel_of_a_map_has_several_places_in_a_linear_layer():
    first, second = find_blocks(built(Numbers), SHAPE)
    assert (first.size, first.makers, first.takers) == (8, ("first",), ("second",))
    assert first.places["second.weight", 1][2].tolist() == list(range(2 * 15, 3 * 15))
    assert (second.size, second.makers, second.takers) == (12, ("second",), ("third",))


def test_channels_stay_where_the_code_holds_to_their_number():
    assert described(built(Held)) == {}


def test_channels_of_a_part_are_those_that_nothing_else_makes():
    blocks = find_blocks(built(Residual), SHAPE)
    assert [block.makers for block in blocks if block.is_in(["stem", "side"])] == [("side",)]
    assert [block.makers for block in blocks if block.is_in(["stem.*", "pro*"])] == [("stem.0", "project")]


def zeroed(model, removed):
    """The network at its full size, in which nothing takes the channels: by hand, from the layers' names."""
    model = copy.deepcopy(model)
    for block, channels in removed.items():
        for taker in block.takers:
            layer = model.get_submodule(taker)
            axis = weight_axes(layer)[0]
            with torch.no_grad():
                layer.weight.index_fill_(
                    axis, torch.as_tensor(block.places[f"{taker}.weight", axis][channels].ravel()), 0
                )
    return model


def require_equal(model, removed):
    pruned = without_channels(model, removed)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images(2)), zeroed(model, removed)(images(2)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(pruned(images(2)), model(images(2)), rtol=1e-4, atol=1e-5)
    return pruned


@pytest.mark.parametrize("make", [Residual, Numbers])
def test_a_pruned_network_is_the_whole_one_with_channels_at_zero(make):
    model = built(make)
    before = copy.deepcopy(model.state_dict())
    removed = {block: [1, 3] for block in find_blocks(model, SHAPE)}
    pruned = require_equal(model, removed)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # a copy was pruned
    count = sum(parameter.numel() for parameter in pruned.parameters())
    assert count < 0.75 * sum(parameter.numel() for parameter in model.parameters())


def test_a_concatenation_keeps_the_order_of_the_channels_by_hand():
    """Without the index arithmetic that is tested: channel 1 of the sum is column 1, channel 0 of the side column 6."""
    model = built(Residual)
    blocks = {block.makers: block for block in find_blocks(model, SHAPE)}
    pruned = without_channels(model, {blocks["side",]: [0], blocks["stem.0", "project"]: [1]})
    kept = [0, 2, 3, 4, 5, 7, 8, 9, 10]
    assert torch.equal(pruned.last.weight, model.last.weight[:, kept])
    assert torch.equal(pruned.side.weight, model.side.weight[[0, 2, 3, 4, 5]][:, 1:])
    assert torch.equal(pruned.stem[1].running_var, model.stem[1].running_var[[0, 2, 3, 4, 5]])
    assert pruned.stem[0].out_channels == pruned.stem[1].num_features == pruned.expand[0].in_channels == 5
    with torch.no_grad():
        model.last.weight[:, [1, 6]] = 0
        model.side.weight[1] = model.expand[0].weight[:, 1] = 0
        torch.testing.assert_close(pruned(images(2)), model(images(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_every_operator_hands_channels_on_or_holds_them(group):
    model = built(lambda: Chain(make() for make in OPERATORS[group].values()))
    blocks = find_blocks(model, SHAPE)
    assert blocks
    require_equal(model, {block: [*{0, (block.size - 1) // 2}] for block in blocks})


def test_a_module_that_is_called_twice_has_its_channels_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared, self.last = nn.Conv2d(3, CHANNELS, 1), conv(bias=False), conv(4, 1)

        def forward(self, x):
            return self.last(self.shared(self.shared(self.first(x)).relu()).relu())

    model = built(Twice)
    (block,) = find_blocks(model, SHAPE)
    assert (set(block.makers), set(block.takers)) == ({"first", "shared"}, {"shared", "last"})
    require_equal(model, {block: [2, 5]})
