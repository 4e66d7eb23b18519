"""Heads: from the neck's output to the network's output."""

from torch import Tensor, nn

from models.backbone import FEATURE_CHANNELS
from models.blocks import UpsampleStage, conv3x3, double_conv, scale


class FullResolutionHead(nn.Module):
    """Two upsampling stages, the second without a skip feature, and a convolution to the output channels.

    Shapes: x (N, 256 * width, H/4, W/4), features as the backbone returns them -> (N, out_channels, H, W).
    """

    def __init__(self, last_channels: int, out_channels: int, width: float):
        super().__init__()
        wide, narrow, last = (scale(count, width) for count in (256, 128, last_channels))
        self.stages = nn.ModuleList(
            [
                UpsampleStage(wide, wide, FEATURE_CHANNELS[0], wide, narrow),
                UpsampleStage(narrow, narrow, 0, narrow, last),
            ]
        )
        self.classify = conv3x3(last, out_channels)

    def forward(self, x: Tensor, features: list[Tensor]) -> Tensor:
        x = self.stages[0](x, features[0])
        return self.classify(self.stages[1](x))


class QuarterResolutionHead(nn.Module):
    """Two convolutions and one to the output channels, at the neck's own size.

    Shapes: x (N, 256 * width, H/4, W/4) -> (N, out_channels, H/4, W/4).
    """

    def __init__(self, out_channels: int, width: float):
        super().__init__()
        wide, narrow = scale(256, width), scale(128, width)
        self.refine = double_conv(wide, wide, narrow)
        self.classify = conv3x3(narrow, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.refine(x))
