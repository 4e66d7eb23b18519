"""The context block: a map of the whole scene, computed from the mean feature, that gates the deepest feature."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv3x3, scale

MAP_HW = (10, 20)  # of the learned one-channel map: the deepest feature of a 320x640 image


class Context(nn.Module):
    """Gate a feature by a learned map of the scene: g * x + x.

    Shapes: x (N, channels, H, W) -> (N, channels, H, W). The map is learned at 10x20 and resized for another H x W.
    """

    def __init__(self, channels: int, width: float):
        super().__init__()
        hidden, *mids = (scale(count, width) for count in (800, 128, 256, 512))
        self.attend = nn.Sequential(
            *(nn.Linear(channels, hidden), nn.Dropout(0.25), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.Dropout(0.25), nn.GELU()),
            *(nn.Linear(hidden, MAP_HW[0] * MAP_HW[1]), nn.Dropout(0.25), nn.Sigmoid()),
        )
        self.expand = nn.Sequential(
            *(conv3x3(1, mids[0]), nn.GELU()),
            *(conv3x3(mids[0], mids[1]), nn.GELU()),
            *(conv3x3(mids[1], mids[2]), nn.GELU()),
            *(conv3x3(mids[2], channels), nn.GELU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        scene = self.attend(x.mean(dim=(2, 3))).reshape(-1, 1, *MAP_HW)
        if x.shape[2:] != MAP_HW:
            scene = F.interpolate(scene, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.expand(scene) * x + x
