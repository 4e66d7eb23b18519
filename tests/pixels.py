"""Back from a network's input to pixels, to compare with."""

import numpy as np
import torch
from torch import Tensor

from models.network import IMAGENET_MEAN, IMAGENET_STD


def denormalise(image: Tensor) -> np.ndarray:
    """float32 (3, H, W) -> uint8 RGB (H, W, 3)."""
    pixels = (image.permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8).numpy()
