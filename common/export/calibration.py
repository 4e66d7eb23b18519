"""Inputs of any network of the family from a plain folder of images: for calibration, and for judging its result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.data.shots import Shot, ShotDataset, ShotFormat
from common.data.transforms import ImageFormat
from common.networks.image_inputs import ImageInputs
from common.system.progress import progress
from models import Network

HELD_OUT = 8  # images, at most, that are kept for judging
Prepare = Callable[[Path], Tensor]  # an image file -> (1, C, H, W)


def split_images(shots: Sequence[Shot], num_calibration: int, seed: int) -> tuple[list[Shot], list[Shot]]:
    """Calibration images, and others for judging, drawn with `seed`; with few images a fifth is kept for judging.

    Raises:
        ValueError: a single image cannot be both.
    """
    if len(shots) < 2:
        raise ValueError(f"{shots[0].image}: the only image; calibration and judging need at least two different ones")
    order = [shots[index] for index in torch.randperm(len(shots), generator=torch.Generator().manual_seed(seed))]
    held_out = min(HELD_OUT, max(1, len(shots) // 5))
    return order[held_out : held_out + num_calibration], order[:held_out]


def image_preparer(network: Network, input_hw: tuple[int, int], image_bits: int | None = None) -> Prepare:
    """How an image file becomes the network's input (1, 3, H, W): resized, or letterboxed for a detector; normalised.

    It is turned upright; `image_bits` as in `read_rgb`.

    Raises:
        ValueError: the network's input is no image.
    """
    shots = ShotFormat(ImageFormat.of(network, input_hw), letterboxed=network.task == "detection")
    return lambda path: shots.to_tensor(shots.load(Shot("", (path,), image_bits)))[None]


def inputs_of(shots: Sequence[Shot], inputs: ImageInputs, what: str) -> list[Tensor]:
    """The inputs of all `shots`, one each, on the CPU; `what` is what the progress bar says."""
    dataset = ShotDataset(shots, inputs.shots)
    return [inputs(dataset[index][None]).cpu() for index in progress(range(len(dataset)), what, unit="image")]
