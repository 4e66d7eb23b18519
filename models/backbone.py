"""The encoder of the family: EfficientNet-B0 (Tan and Le, 2019), as torchvision builds it."""

from torch import Tensor, nn
from torchvision.models import efficientnet_b0
from torchvision.ops import StochasticDepth

FEATURE_STAGES = (0, 2, 3, 4, 8)  # of torchvision's nine stages, those whose output the decoders use
FEATURE_CHANNELS = (32, 24, 40, 80, 1280)  # of these stages, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input size


class Backbone(nn.Module):
    """EfficientNet-B0 features at five scales. Built with random weights; nothing is downloaded.

    Shapes: image (N, 3, H, W), H and W multiples of 32 -> five tensors (N, FEATURE_CHANNELS[i], H / 2^(i+1),
    W / 2^(i+1)).
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = efficientnet_b0(weights=None).features

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for index, stage in enumerate(self.encoder):
            x = stage(x)
            if index in FEATURE_STAGES:
                features.append(x)
        return features


def remove_stochastic_depth(module: nn.Module) -> None:
    """Replace every StochasticDepth below `module` by the identity, in place.

    An exported graph keeps drawing its random numbers, also in evaluation; it is the identity in eval mode anyway.
    """
    for name, child in module.named_children():
        if isinstance(child, StochasticDepth):
            setattr(module, name, nn.Identity())
        else:
            remove_stochastic_depth(child)
