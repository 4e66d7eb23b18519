"""SceneSeg: background, foreground and road of a driving scene."""

from torch import Tensor, nn

from models.backbone import FEATURE_CHANNELS, Backbone
from models.context import Context
from models.heads import FullResolutionHead
from models.neck import Neck

CLASSES = ("Background", "Foreground", "Road")
COLOURS = ((61, 93, 255), (255, 28, 145), (0, 255, 220))  # of the classes in pictures, RGB
# what the family's masks store: kind of object, RGB, class
PALETTE = (
    ("sky", (61, 184, 255), "Background"),
    ("background objects", (61, 93, 255), "Background"),
    ("road-edge delimiter", (216, 255, 61), "Background"),
    ("unlabelled", (0, 0, 0), "Background"),
    ("vulnerable living", (255, 61, 61), "Foreground"),
    ("small vehicle", (255, 190, 61), "Foreground"),
    ("large vehicle", (255, 116, 61), "Foreground"),
    ("other foreground", (255, 28, 145), "Foreground"),
    ("road", (0, 255, 220), "Road"),
)
MASK_COLOURS = {colour: name for _, colour, name in PALETTE}


class SceneSegNetwork(nn.Module):
    """Semantic segmentation of a driving scene into three classes.

    Shapes: image (N, 3, H, W), RGB normalised by mean and standard deviation, H and W multiples of 32 (native 320x640)
    -> logits (N, 3, H, W): Background, Foreground, Road.

    Args:
        width: scale of the channels of context, neck and head, a multiple of 1/32; the encoder stays as it is.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        deepest = FEATURE_CHANNELS[-1]
        self.backbone = Backbone()
        self.context = Context(deepest, width)
        self.neck = Neck(deepest, width)
        self.head = FullResolutionHead(64, len(CLASSES), width)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        x = self.context(features[-1])
        return self.head(self.neck(x, features), features)
