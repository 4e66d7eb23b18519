"""Blocks that several networks are made of."""

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution with bias that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def double_conv(in_channels: int, mid_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with a GELU behind it."""
    return nn.Sequential(conv3x3(in_channels, mid_channels), nn.GELU(), conv3x3(mid_channels, out_channels), nn.GELU())


def scale(channels: int, width: float) -> int:
    """`channels` times `width`, exactly.

    Raises:
        ValueError: that is no whole number of channels.
    """
    scaled = channels * width
    if scaled < 1 or scaled != int(scaled):
        raise ValueError(
            f"width {width:g} makes {scaled:g} of {channels} channels; use a multiple of 1/32, such as 0.125"
        )
    return int(scaled)


class UpsampleStage(nn.Module):
    """Double the resolution, add the encoder's skip feature where there is one, refine with two convolutions.

    Everything before the first GELU is linear: no activation stands between upsampling, sum and first convolution.

    Shapes: x (N, in_channels, H, W), skip (N, skip_channels, 2H, 2W) or None -> (N, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, up_channels: int, skip_channels: int, mid_channels: int, out_channels: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, up_channels, kernel_size=2, stride=2)
        self.skip = nn.Conv2d(skip_channels, up_channels, kernel_size=1) if skip_channels else None
        self.refine = double_conv(up_channels, mid_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.upsample(x)
        if self.skip is not None:
            x = x + self.skip(skip)
        return self.refine(x)
