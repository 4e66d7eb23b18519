"""What channels count, against the distances of a network that really is without them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.pruning.channels import find_blocks
from common.pruning.importance import distances_without, ranks_by_weights
from common.pruning.slicing import without_channels
from models import Network

SHAPE = (3, 4, 6)
SMALL = 0.05  # of what comes through the channels: second order is then all


class Plain(nn.Module):
    """The channels between two convolutions add a little to an output that does not need them."""

    def __init__(self, outs=2):
        super().__init__()
        self.base, self.first, self.last = nn.Conv2d(3, outs, 1), nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, outs, 1)

    def forward(self, x):
        return 2 * self.base(x) + SMALL * self.last(self.first(x).tanh())


def distance(kind, whole, pruned, variances=None):
    """By their definitions, of one image; of values as a share of `variances`."""
    if kind == "classes":
        return F.kl_div(pruned.log_softmax(1), whole.log_softmax(1), log_target=True, reduction="none").sum(1).mean()
    if kind == "logits":
        pair = [torch.stack([each, torch.zeros_like(each)], dim=1) for each in (whole, pruned)]
        return distance("classes", *pair)
    return ((whole - pruned).square().mean((0, 2, 3)) / variances).mean()


@pytest.mark.parametrize("kind", ["classes", "logits", "values"])
def test_the_estimate_is_the_distance_of_the_network_without_the_channel(kind):
    torch.manual_seed(0)
    model = Plain().eval()
    row = Network(Plain, SHAPE, outputs={"output": ""}, output_kinds={"output": kind})
    (block,) = find_blocks(model, SHAPE)
    few = [torch.randn(1, *SHAPE) for _ in range(4)]
    (found,) = distances_without(model, row, [block], few * 300, seed=0)
    with torch.no_grad():
        few = [image.double() for image in few]
        model.double()
        outputs = torch.cat([model(image) for image in few])
        variances = outputs.var((0, 2, 3), correction=0)
        for channel in range(block.size):
            pruned = without_channels(model, {block: [channel]})
            exact = sum(distance(kind, model(image), pruned(image), variances) for image in few).item() / len(few)
            assert found[channel] == pytest.approx(exact, rel=0.2), channel
    assert found.max() > 2 * found.min()  # there is something to tell apart


def test_an_output_without_variation_says_nothing():
    model = Plain().eval()
    nn.init.zeros_(model.base.weight)
    nn.init.zeros_(model.last.weight)
    row = Network(Plain, SHAPE, outputs={"depth": ""}, output_kinds={"depth": "values"})
    with pytest.raises(ValueError, match="output depth .* says nothing of the channels"):
        distances_without(model, row, find_blocks(model, SHAPE), [torch.zeros(1, *SHAPE)] * 2, seed=0)


def test_norms_count_all_weights_of_a_channel():
    model = Plain().eval()
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([1.0, 2, 3, 4, 0]).reshape(5, 1, 1, 1).expand(5, 3, 3, 3))
        model.last.weight.copy_(torch.tensor([0.0, 0, 0, 0, 99]).reshape(1, 5, 1, 1).expand(2, 5, 1, 1))
    (block,) = find_blocks(model, SHAPE)
    assert ranks_by_weights(model, block).tolist() == [0, 0.2, 0.4, 0.6, 0.8]


def test_norms_count_the_factors_of_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([20.0, 10.0, 30.0]))
    (block,) = find_blocks(model, SHAPE)
    assert (3 * ranks_by_weights(model, block)).round().tolist() == [1, 0, 2]
