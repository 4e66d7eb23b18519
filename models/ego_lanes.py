"""EgoLanes: the lane lines beside the own car."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import FEATURE_CHANNELS, Backbone
from models.context import Context
from models.heads import QuarterResolutionHead
from models.neck import Neck

LANES = ("ego left lane", "ego right lane", "other lanes")


class EgoLanesNetwork(nn.Module):
    """Three lane maps at a quarter of the input size, from the encoder's features of all scales together.

    Shapes: image (N, 3, H, W), RGB normalised by mean and standard deviation, H and W multiples of 32 (native 320x640)
    -> logits (N, 3, H/4, W/4): three lane maps, each of its own (sigmoid, not softmax).

    Args:
        width: scale of the channels of context, neck and head, a multiple of 1/16.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        fused = sum(FEATURE_CHANNELS)
        self.backbone = Backbone()
        self.context = Context(fused, width)
        self.neck = Neck(fused, width)
        self.head = QuarterResolutionHead(len(LANES), width)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        x = self.context(fuse_scales(features))
        return self.head(self.neck(x, features))


def fuse_scales(features: list[Tensor]) -> Tensor:
    """Pool every feature to the size of the deepest (2x2 maxima, as often as it takes) and concatenate the channels."""
    pooled = list(features)
    for index, feature in enumerate(features[:-1]):
        for _ in range(len(features) - 1 - index):
            feature = F.max_pool2d(feature, kernel_size=2, stride=2)
        pooled[index] = feature
    return torch.cat(pooled, dim=1)
