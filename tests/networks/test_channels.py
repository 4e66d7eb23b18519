import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from common.networks.channels import channels_of, set_channels, weight_axes

LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (3, 5), (2, 3, 8, 8)),
    "without bias": (lambda: nn.Conv1d(4, 6, 3, bias=False), (3, 5), (2, 3, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, 2), (3, 5), (2, 3, 8, 8)),
    "linear": (lambda: nn.Linear(4, 6), (3, 5), (2, 3)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (4, 4), (2, 4, 8, 8)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(6, 6, 3, groups=6), (4, 4), (2, 4, 8, 8)),
    "batch norm": (lambda: nn.BatchNorm2d(6), (4, 4), (2, 4, 8, 8)),
    "batch norm of statistics": (lambda: nn.BatchNorm1d(6, affine=False), (4, 4), (2, 4)),
    "PReLU": (lambda: nn.PReLU(6), (4, 4), (2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_other_channels(name):
    make, (ins, outs), shape = LAYERS[name]
    model = nn.Sequential(make().eval())
    before = channels_of(model)["0"]
    set_channels(model, {"0": (ins, outs)})
    assert model(torch.zeros(shape)).shape[1] == outs
    assert channels_of(model) == {"0": (ins, outs)} != {"0": before}
    names = {key for key, _ in nn.Sequential(make()).named_parameters()}
    assert {key for key, each in model.named_parameters() if each.requires_grad} == names


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 6, 1, groups=2),
        lambda: nn.Conv2d(4, 8, 1, groups=4),
        lambda: nn.PReLU(),
        lambda: nn.GroupNorm(2, 4),
        lambda: weight_norm(nn.Conv2d(4, 6, 1)),
        lambda: nn.MultiheadAttention(4, 2),
    ],
)
def test_other_layers_keep_their_channels(make):
    layer = make()
    assert weight_axes(layer) is None
    with pytest.raises(ValueError, match="^part: has fixed channels$"):
        set_channels(nn.ModuleDict({"part": layer}), {"part": (2, 2)})


def test_what_no_layer_can_have_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="^0: 3 channels go in and 2 come out of a layer that keeps them$"):
        set_channels(model, {"0": (3, 2)})
    with pytest.raises(ValueError, match="^a: no layer of the network$"):
        set_channels(model, {"a": (3, 3)})
