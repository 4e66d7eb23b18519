"""Scene3D: relative depth of a driving scene."""

from torch import Tensor, nn

from models.backbone import FEATURE_CHANNELS, Backbone
from models.context import Context
from models.heads import FullResolutionHead
from models.neck import Neck
from models.scene_seg import SceneSegNetwork


class Scene3DNetwork(nn.Module):
    """Monocular depth on the encoder of SceneSeg.

    Shapes: image (N, 3, H, W), RGB normalised by mean and standard deviation, H and W multiples of 32 (native 320x640)
    -> (N, 1, H, W): relative depth, unbounded, without unit.

    Args:
        width: scale of the channels of context, neck and head, a multiple of 1/32.
        scene_seg: take its encoder, which is then not trained.
    """

    def __init__(self, width: float = 1.0, scene_seg: SceneSegNetwork | None = None):
        super().__init__()
        deepest = FEATURE_CHANNELS[-1]
        self.backbone = scene_seg.backbone.requires_grad_(False) if scene_seg else Backbone()
        self.context = Context(deepest, width)
        self.neck = Neck(deepest, width)
        self.head = FullResolutionHead(128, 1, width)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        x = self.context(features[-1])
        return self.head(self.neck(x, features), features)
