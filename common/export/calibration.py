"""Inputs of any network of the family from a plain folder of images: for calibration, and for judging its result."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from common.data.decoding import read_rgb
from common.data.pairs import IMAGE_SUFFIXES
from common.data.transforms import ImageFormat, resize_image
from common.runtimes.predictors import Predictor
from common.system.progress import progress
from models import Network

PADDING = 114  # grey of the letterbox, as detectors of the YOLO kind are trained with
HELD_OUT = 8  # images, at most, that are kept for judging
Prepare = Callable[[Path], Tensor]  # an image file -> (1, C, H, W)


def find_images(folder: Path) -> list[Path]:
    """All images below `folder`, however deep, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder, or no image below it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
    if not images:
        raise FileNotFoundError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} file in it, however deep")
    return images


def split_images(images: Sequence[Path], num_calibration: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Calibration images, and others for judging, drawn with `seed`; with few images a fifth is kept for judging.

    Raises:
        ValueError: a single image cannot be both.
    """
    if len(images) < 2:
        raise ValueError(f"{images[0]}: the only image; calibration and judging need at least two different ones")
    order = [images[index] for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    held_out = min(HELD_OUT, max(1, len(images) // 5))
    return order[held_out : held_out + num_calibration], order[:held_out]


def image_preparer(network: Network, input_hw: tuple[int, int], image_bits: int | None = None) -> Prepare:
    """How an image file becomes the network's input (1, 3, H, W): resized, or letterboxed for a detector; normalised.

    It is turned upright; `image_bits` as in `read_rgb`.

    Raises:
        ValueError: the network's input is no image.
    """
    image_format = ImageFormat.of(network, input_hw)
    fit = letterbox if network.task == "detection" else resize_image

    def prepare(path: Path) -> Tensor:
        return image_format.to_tensor(fit(read_rgb(path, image_bits), input_hw))[None]

    return prepare


def letterbox(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize to fit with the aspect ratio kept, centred on grey: uint8 (H, W, 3)."""
    scale = min(hw[0] / rgb.shape[0], hw[1] / rgb.shape[1])
    height, width = (max(1, round(size * scale)) for size in rgb.shape[:2])
    canvas = np.full((*hw, 3), PADDING, np.uint8)
    top, left = (hw[0] - height) // 2, (hw[1] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


def frame_pair_preparer(lanes: Predictor, prepare: Prepare, images: Sequence[Path]) -> Prepare:
    """Inputs of AutoSteer: the lane maps of the image before (by path) and of the image, on the channel axis."""
    before = dict(zip(images[1:], images[:-1], strict=True))

    def prepare_pair(path: Path) -> Tensor:
        return torch.cat([lanes(prepare(before.get(path, path))), lanes(prepare(path))], dim=1)

    return prepare_pair


def inputs_of(paths: Iterable[Path], prepare: Prepare, what: str) -> list[Tensor]:
    """The inputs of all `paths`, one image each; `what` is what the progress bar says."""
    return [prepare(path) for path in progress(paths, what, unit="image")]
