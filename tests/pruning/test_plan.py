"""What is left out for a share of the operations, and how these are counted."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from common.pruning.channels import find_blocks
from common.pruning.plan import Costs, choose
from common.pruning.slicing import without_channels
from models.blocks import UpsampleStage

SHAPE = (3, 8, 10)
PLACES = 8 * 10


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.ReLU())
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.last(self.decoder(self.encoder(x)))


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain().eval()


def operations(model, *only, **options):
    return Costs(SHAPE, only or ("*",), **options).operations(copy.deepcopy(model).to("meta"))


def test_operations_by_hand(chain):
    encoder, decoder, last = 2 * PLACES * (27 * 16 + 144 * 16), 2 * PLACES * (16 * 24 + 24 * 12), 2 * PLACES * 24
    assert operations(chain) == encoder + decoder + last
    assert operations(chain, "decoder") == operations(chain, "decoder", "decoder.*") == decoder
    assert operations(chain, "decoder.2", "last") == 2 * PLACES * 24 * 12 + last
    assert operations(chain, "nothing") == 0


def test_a_fused_stage_costs_nothing_between_upsampling_and_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), UpsampleStage(8, 8, 0, 8, 4), nn.Conv2d(4, 2, 1)).eval()
    (block,) = [block for block in find_blocks(model, SHAPE) if block.makers == ("1.upsample",)]
    pruned = without_channels(model, {block: [0]})
    assert operations(pruned) == operations(model)
    assert operations(pruned, fused=False) < operations(model, fused=False)
    with pytest.raises(ValueError, match="no channels that can be left out"):
        choose(model, {block: np.arange(8)}, Costs(SHAPE), 0.5, multiple=1, by_cost=False)


def scored(model):
    """Blocks of the chain, and scores by which the last channels of each count least."""
    return {block: np.arange(block.size)[::-1] / block.size for block in find_blocks(model, SHAPE)}


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_a_share_of_the_operations_is_kept_and_no_more_is_left_out_than_it_takes(chain, keep):
    scores = scored(chain)
    plan = choose(chain, scores, Costs(SHAPE, ("*",)), keep, multiple=2, by_cost=False)
    pruned = without_channels(chain, plan.removed)
    assert (plan.before, plan.after) == (operations(chain), operations(pruned))
    assert plan.after <= keep * plan.before
    for block, channels in plan.removed.items():
        assert (block.size - len(channels)) % 2 == 0 < block.size - len(channels)
        assert sorted(channels) == list(range(block.size - len(channels), block.size))  # those that count least
    one_less = {block: channels[:-2] for block, channels in plan.removed.items()}
    assert operations(without_channels(chain, one_less)) > keep * plan.before


def test_only_the_named_part_is_counted(chain):
    scores = {block: each for block, each in scored(chain).items() if block.is_in(["decoder"])}
    plan = choose(chain, scores, Costs(SHAPE, ("decoder",)), 0.5, multiple=4, by_cost=False)
    assert {block.makers for block in plan.removed} <= {("decoder.0",), ("decoder.2",)}
    assert plan.before == operations(chain, "decoder")
    assert plan.after == operations(without_channels(chain, plan.removed), "decoder") <= plan.before / 2


def test_channels_that_cost_more_go_before_those_that_count_less(chain):
    """A channel of the encoder saves 6 times as many multiply-adds as one of the decoder."""
    scores = {
        block: np.full(block.size, 2.0 if block.is_in(["encoder"]) else 1.0) for block in find_blocks(chain, SHAPE)
    }
    plan = choose(chain, scores, Costs(SHAPE, ("*",)), 0.8, multiple=4, by_cost=True)
    assert [block.makers for block in plan.removed] == [("encoder.0",)]
    plan = choose(chain, scores, Costs(SHAPE, ("*",)), 0.95, multiple=4, by_cost=False)
    assert {block.makers for block in plan.removed} <= {("decoder.0",), ("decoder.2",)}


def test_a_channel_whose_number_does_not_divide_goes_first(chain):
    scores = {block: each for block, each in scored(chain).items() if block.makers == ("decoder.2",)}
    plan = choose(chain, scores, Costs(SHAPE, ("last",)), 0.99, multiple=8, by_cost=False)
    assert [len(channels) for channels in plan.removed.values()] == [4]  # 12 -> 8


class Exact(nn.Module):
    """Its code holds to the number of channels in a way that no graph shows."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.first(x)
        if x.shape[1] != 8:
            raise RuntimeError("eight, please")
        return self.last(self.second(x))


def test_a_block_that_the_code_cannot_do_without_stays(caplog):
    model = Exact().eval()
    with caplog.at_level("INFO"):
        plan = choose(model, scored(model), Costs(SHAPE), 0.8, multiple=1, by_cost=False)
    assert [block.makers for block in plan.removed] == [("second",)]
    assert "first keeps its channels, on whose number the code depends: RuntimeError: eight, please" in caplog.text


def test_what_cannot_be_reached_is_refused(chain):
    scores = {block: each for block, each in scored(chain).items() if block.is_in(["decoder"])}
    with pytest.raises(ValueError, match=r"^--keep_gflop 0.1: 0.286 of the operations remain with 8 channels in each"):
        choose(chain, scores, Costs(SHAPE, ("decoder",)), 0.1, multiple=8, by_cost=False)
    with pytest.raises(ValueError, match="^--only decoder: no channels that can be left out by 32; name larger parts"):
        choose(chain, scores, Costs(SHAPE, ("decoder",)), 0.5, multiple=32, by_cost=False)
