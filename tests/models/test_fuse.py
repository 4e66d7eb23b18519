"""The fused upsampling stage computes what the plain one computes."""

import copy

import pytest
import torch
from torch import nn

from models.blocks import UpsampleStage
from models.domain_seg import DomainSegNetwork
from models.ego_lanes import EgoLanesNetwork
from models.fuse import FusedUpsampleStage, fuse_upsampling
from models.scene_3d import Scene3DNetwork
from models.scene_seg import SceneSegNetwork


def with_large_biases(network: nn.Module) -> nn.Module:
    """Biases that show at the border, where some taps of the fused kernel fall on padding."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return network.eval()


def largest_difference(plain: torch.Tensor, fused: torch.Tensor) -> float:
    return ((plain - fused).abs().max() / (plain.max() - plain.min())).item()


@pytest.mark.parametrize("skip_channels", [0, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 7)])
@torch.no_grad()
def test_a_stage_at_every_size_with_its_border(skip_channels, size):
    torch.manual_seed(0)
    stage = with_large_biases(nn.Sequential(UpsampleStage(5, 6, skip_channels, 4, 2)))
    x = torch.randn(3, 5, *size)
    skip = (torch.randn(3, skip_channels, 2 * size[0], 2 * size[1]),) if skip_channels else ()
    expected = stage[0](x, *skip)
    fused = fuse_upsampling(stage)[0]
    assert isinstance(fused, FusedUpsampleStage)
    assert largest_difference(expected, fused(x, *skip)) < 1e-5


@pytest.mark.parametrize("build", [SceneSegNetwork, Scene3DNetwork, DomainSegNetwork, EgoLanesNetwork])
@torch.no_grad()
def test_networks_of_the_family(build):
    torch.manual_seed(0)
    network = with_large_biases(build(1 / 16))
    fused = fuse_upsampling(copy.deepcopy(network))
    assert not any(isinstance(module, UpsampleStage) for module in fused.modules())
    images = torch.randn(2, 3, 64, 96)
    assert largest_difference(network(images), fused(images)) < 1e-5


def test_a_network_without_stages_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert fuse_upsampling(network) is network
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_the_fused_form_trains():
    stage = fuse_upsampling(nn.Sequential(UpsampleStage(5, 6, 3, 4, 2)))[0]
    stage(torch.randn(1, 5, 2, 2), torch.randn(1, 3, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in stage.parameters())


def test_in_float_every_fused_convolution_takes_channels_in_fours():
    """The others would run in ONNX Runtime's slower kernels."""
    fused = fuse_upsampling(SceneSegNetwork(width=0.125))
    stages = [module for module in fused.modules() if isinstance(module, FusedUpsampleStage)]
    assert len(stages) == 5
    assert all(stage.upsample.in_channels % 4 == 0 for stage in stages)
