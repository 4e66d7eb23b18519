"""How images become the input of a network: by themselves, several in a row, or by way of another network."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.data.shots import ShotFormat
from common.data.transforms import ImageFormat
from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from models import Network

SMALL = 64  # pixels; every network of the family takes it


@dataclass(frozen=True)
class ImageInputs:
    """What a network takes of images without masks."""

    shots: ShotFormat
    device: torch.device  # on which inputs are wanted
    maker: nn.Module | None = None  # the network whose output on each image is a part of the input, on that device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images of shots (N, 3 count, h, w) -> inputs of the network (N, C, H, W) on the device."""
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        if self.maker is None:
            return images
        return torch.cat([self.maker(image) for image in images.chunk(self.shots.count, dim=1)], dim=1)


def image_inputs(
    name: str,
    network: Network,
    input_hw: tuple[int, int],
    device: torch.device,
    maker_checkpoint: Path | None = None,
    weights: str | None = None,
) -> ImageInputs:
    """That of the network `name` at an input size.

    Args:
        maker_checkpoint: FP32 weights of the network that makes its input (AutoSteer's is EgoLanes), if one does.
        weights: which of several sets in it.

    Raises:
        ValueError: the network takes no images, or those of another network whose checkpoint is not given.
    """
    if network.made_by is None:
        if maker_checkpoint:
            raise ValueError(f"--egolanes_checkpoint: {name} takes images by themselves; leave the flag out")
        image_format, letterboxed = ImageFormat.of(network, input_hw), network.task == "detection"
        return ImageInputs(ShotFormat(image_format, network.images, letterboxed), device)
    maker_name, count = network.made_by
    if maker_checkpoint is None:
        raise ValueError(
            f"{name} takes outputs of {maker_name}: give its weights with --egolanes_checkpoint CKPT to make them"
        )
    maker, description = load_network(maker_name, maker_checkpoint, weights)
    row = find_network(maker_name)[1]
    stride = _stride(maker, row.input_shape[0])
    made_hw = tuple(side // stride for side in description.input_hw)
    if made_hw != input_hw:
        raise ValueError(f"--egolanes_checkpoint {maker_checkpoint}: gives maps of {made_hw}, {name} takes {input_hw}")
    return ImageInputs(ShotFormat(ImageFormat.of(row, description.input_hw), count), device, maker.to(device))


@torch.no_grad()
def _stride(maker: nn.Module, channels: int) -> int:
    """Input pixels for one of the output, found on a small input."""
    return SMALL // maker(torch.zeros(1, channels, SMALL, SMALL)).shape[2]
