"""AutoSteer: the steering angle, from the lane maps of two frames."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv3x3

CHANNELS = 32
BINS = 61  # of one degree; angle in degrees = argmax - 30
INPUT_SHAPE = (6, 80, 160)  # two EgoLanes outputs, previous and current, on the channel axis


class AutoSteerNetwork(nn.Module):
    """Steering-angle bins of the previous and the current frame.

    Shapes: lanes (N, 6, 80, 160), EgoLanes logits of the previous and the current frame
    -> two logits (N, 61), previous and current: the angle in degrees is argmax - 30.
    """

    def __init__(self) -> None:
        super().__init__()
        channels, height, width_pixels = INPUT_SHAPE
        flat = CHANNELS * (height // 16) * (width_pixels // 16)
        self.trunk = nn.ModuleList(conv3x3(channels if index == 0 else CHANNELS, CHANNELS) for index in range(4))
        self.previous = angle_branch(flat)
        self.current = angle_branch(flat)

    def forward(self, lanes: Tensor) -> tuple[Tensor, Tensor]:
        scales: list[Tensor] = []
        x = lanes
        for conv in self.trunk:
            scales = [halve(scale) for scale in scales]
            x = halve(F.gelu(conv(x)))
            scales.append(x)
        flat = sum(reversed(scales[:-1]), start=x).flatten(1)
        return self.previous(flat), self.current(flat)


def halve(x: Tensor) -> Tensor:
    """Maxima of 2x2."""
    return F.max_pool2d(x, kernel_size=2, stride=2)


def angle_branch(features: int) -> nn.Sequential:
    """Two linear layers to the steering-angle bins."""
    return nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Dropout(0.4), nn.Linear(features, BINS))
