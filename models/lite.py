"""The Lite networks: DeepLabV3+ on an EfficientNet, by segmentation-models-pytorch, with which they are published."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

PROJECTION = "decoder.aspp.0.project.0.weight"  # its first axis: the channels of the decoder
SECOND_BLOCK = "encoder.blocks.0.1.conv_dw.weight"  # an EfficientNet-B1 has it, a B0 has not
HEADS = ("head.0.weight", "segmentation_head.0.weight")  # published, and in the library
LANES = ("leftmost lane", "rightmost lane", "other lanes")
CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}  # in the order of the train ids, with the palette of cityscapesScripts (labels.py)


def deeplab(encoder: str, decoder_channels: int, classes: int, kernel: int = 3) -> nn.Module:
    """The network with random weights; `kernel` is that of the head's convolution.

    Shapes: (N, 3, H, W), multiples of 16 -> (N, classes, H, W).
    """
    import segmentation_models_pytorch as smp  # here: seconds of imports that no other network takes

    model = smp.DeepLabV3Plus(
        encoder,
        encoder_weights=None,
        encoder_output_stride=16,
        decoder_channels=decoder_channels,
        classes=classes,
        upsampling=4,
    )
    head = model.segmentation_head
    head[0] = nn.Conv2d(decoder_channels, classes, kernel, padding=kernel // 2)
    return model


def builders(encoder: str, decoder_channels: int, classes: int) -> dict[str, Callable[..., nn.Module]]:
    """How a row builds the network: the published one, and the one whose weights these are, by their shapes."""
    return {
        "build": partial(deeplab, encoder, decoder_channels, classes),
        "build_for": partial(_deeplab_for, encoder, decoder_channels, classes),
    }


def _deeplab_for(encoder: str, decoder_channels: int, classes: int, state: Mapping[str, Tensor]) -> nn.Module:
    projection, head = state.get(PROJECTION), next((state[key] for key in HEADS if key in state), None)
    if projection is None or head is None or head.dim() != 4:  # another network's: the comparison of the keys tells
        return deeplab(encoder, decoder_channels, classes)
    found = "timm-efficientnet-b1" if SECOND_BLOCK in state else "timm-efficientnet-b0"
    return deeplab(found, projection.shape[0], classes, head.shape[-1])
