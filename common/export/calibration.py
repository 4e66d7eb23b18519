"""Inputs of any network of the family from a plain folder of images: for calibration, and for judging its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.data.shots import Shot, ShotDataset, ShotFormat, find_shots
from common.data.transforms import ImageFormat
from common.networks.image_inputs import ImageInputs, image_inputs
from common.networks.opening import OpenedNetwork
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


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder: some calibrate, some judge the file, the others are left."""

    inputs: ImageInputs
    calibrating: Sequence[Shot]
    judging: Sequence[Shot]
    left: Sequence[Shot]

    def to_calibrate(self) -> list[Tensor]:
        """Inputs (1, C, H, W) of those that calibrate."""
        return inputs_of(self.calibrating, self.inputs, "read for calibration")

    def to_judge(self) -> list[Tensor]:
        """Of those that judge."""
        return inputs_of(self.judging, self.inputs, "read for judging")


def folder_images(
    source: OpenedNetwork,
    folder: Path,
    count: int,
    seed: int,
    egolanes_checkpoint: Path | None,
    image_bits: int | None = None,
    weights: str | None = None,
) -> FolderImages:
    """The images below `folder`: at most `count` for the calibration.

    `image_bits` as in `read_rgb`, `weights` as in `open_network`.

    Raises:
        ValueError: the network takes another network's outputs, whose checkpoint is not given.
    """
    cpu = torch.device("cpu")
    inputs = image_inputs(source.name, source.network, source.input_shape[1:], cpu, egolanes_checkpoint, weights)
    shots = find_shots([folder], inputs.shots.count, image_bits)
    chosen, others = split_images(shots, count, seed)
    used = {*chosen, *others}
    return FolderImages(inputs, chosen, others, [shot for shot in shots if shot not in used])
