"""The neck: three upsampling stages from the context's output to a quarter of the input size."""

from torch import Tensor, nn

from models.backbone import FEATURE_CHANNELS
from models.blocks import UpsampleStage, scale

MID_OUT = ((768, 768), (512, 512), (512, 256))  # channels of the two convolutions of each stage


class Neck(nn.Module):
    """Decode the deepest feature with the encoder's features at 1/16, 1/8 and 1/4 of the input size.

    Shapes: x (N, channels, H/32, W/32), features as the backbone returns them -> (N, 256 * width, H/4, W/4).
    """

    def __init__(self, channels: int, width: float):
        super().__init__()
        stages, in_channels, up_channels = [], channels, channels
        for skip_channels, (mid, out) in zip(FEATURE_CHANNELS[3:0:-1], MID_OUT, strict=True):
            sizes = (scale(count, width) for count in (up_channels, mid, out))
            up, mid_scaled, out_scaled = sizes
            stages.append(UpsampleStage(in_channels, up, skip_channels, mid_scaled, out_scaled))
            in_channels, up_channels = out_scaled, out
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, features: list[Tensor]) -> Tensor:
        for stage, skip in zip(self.stages, features[3:0:-1], strict=True):
            x = stage(x, skip)
        return x
