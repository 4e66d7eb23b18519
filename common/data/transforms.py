"""From pixels to tensors: the one path of training, validation, calibration and every benchmarked model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.data.camera import PLAIN, CameraFormat
from models import Network


def arranged(planes: Tensor, camera: CameraFormat, order: str) -> Tensor:
    """Planes (..., 3, H, W) of channels in the order `order` ("RGB" or "BGR") as a file of that form takes them."""
    if camera.channels and camera.channels != order.lower():
        planes = planes.flip(-3)
    return (planes.movedim(-3, -1) if camera.layout == "nhwc" else planes).contiguous()


@dataclass(frozen=True)
class ImageFormat:
    """How a network takes its images: their size, and what becomes of their bytes."""

    hw: tuple[int, int]  # height, width
    mean: tuple[float, ...]  # of 0..1, in the order of the channels
    std: tuple[float, ...]
    channel_order: str = "RGB"  # or BGR
    camera: CameraFormat = PLAIN  # of a file that takes images in another form than the network

    @classmethod
    def of(cls, network: Network, hw: tuple[int, int] | None = None, camera: CameraFormat = PLAIN) -> "ImageFormat":
        """That of a network, at its native size or another; ValueError where its input is no image."""
        if network.mean is None or network.std is None or network.input_shape[0] != len(network.channel_order):
            raise ValueError("this network's input is no image of three channels")
        return cls(hw or network.input_shape[1:], network.mean, network.std, network.channel_order, camera)

    def to_tensor(self, rgb: np.ndarray) -> Tensor:
        """uint8 RGB (H, W, 3) -> normalised float32 (3, H, W), or what `camera` says."""
        planes = torch.from_numpy(rgb).permute(2, 0, 1)
        if self.camera.type == "uint8":
            planes = planes if self.channel_order == "RGB" else planes.flip(0)
            return arranged(planes, self.camera, self.channel_order)
        return arranged(self.normalise(planes), self.camera, self.channel_order)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 RGB (3, H, W) -> (pixel / 255 - mean) / std in the network's order of channels, float32."""
        if self.channel_order == "BGR":
            image = image.flip(0)
        return self.of_pixels(image)

    def of_pixels(self, planes: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) in the network's order of channels -> normalised float32."""
        # contiguous while it is bytes; a copy because the arithmetic is in place
        planes = planes.contiguous().to(torch.float32, copy=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return planes.div_(255).sub_(mean).div_(std)

    def to_pixels(self, normalised: Tensor) -> Tensor:
        """The inverse of `of_pixels`; what no pixel gives becomes the nearest that does."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return normalised.mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def resize_image(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Bilinear without antialiasing, as OpenCV's `resize` does by default and the C++ runners in the car do."""
    return cv2.resize(rgb, hw[::-1], interpolation=cv2.INTER_LINEAR)


def resize_mask(ids: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour with the pixel centres of the bilinear resize, so that image and mask stay aligned."""
    return cv2.resize(ids, hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def augmentation(strength: float) -> v2.Transform:
    """Random changes of image and mask together: flip, colour, grey, noise, blur; stand-ins for the original's.

    `strength` (0..1) scales how often and how much.
    """
    colour = v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.4 * strength, 0.08 * strength)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5 * min(1.0, 2 * strength)),
            v2.RandomApply([colour], 0.8),
            v2.RandomGrayscale(0.1 * strength),
            v2.RandomApply([v2.GaussianNoise(sigma=0.1 * strength)], 0.2 * strength),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], 0.2 * strength),
        ]
    )


def augment(rgb: np.ndarray, ids: np.ndarray, transform: v2.Transform, seed: int) -> tuple[Tensor, Tensor]:
    """Apply `transform` with random numbers of its own: uint8 (H, W, 3) and (H, W) -> uint8 (3, H, W) and (H, W).

    The draw depends on `seed` alone, and PyTorch's global random state, on the CPU and on GPUs, is left as it was.
    """
    image = tv_tensors.Image(torch.from_numpy(rgb).permute(2, 0, 1))
    mask = tv_tensors.Mask(torch.from_numpy(ids))
    with _numbers_of(seed):
        return transform(image, mask)


def augment_images(images: np.ndarray, transform: v2.Transform, seed: int) -> list[Tensor]:
    """The same for images without masks, all with one draw: uint8 (count, H, W, 3) -> uint8 (3, H, W) each."""
    planes = [tv_tensors.Image(torch.from_numpy(rgb).permute(2, 0, 1)) for rgb in images]
    with _numbers_of(seed):
        changed = transform(*planes)
    return [each.as_subclass(Tensor) for each in (changed if len(planes) > 1 else [changed])]


@contextmanager
def _numbers_of(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too, whose dropout repeats
        yield
