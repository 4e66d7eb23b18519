"""Images without a map of classes: found below folders, split, and brought to the size that a network takes.

A shot is what a network sees at a time: one image, or an image and those before it where it takes several.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.data.decoding import read_bytes, read_rgb
from common.data.image_header import read_header
from common.data.labels import LabelMap
from common.data.loading import JPEG_SUFFIXES, derived_seed, region_of
from common.data.pairs import IMAGE_SUFFIXES, LAYOUTS
from common.data.transforms import ImageFormat, augment_images, augmentation, resize_image

PADDING = 114  # grey of the letterbox, as detectors of the YOLO kind are trained with
HELD_OUT = 10  # every tenth image of a folder is kept for validation, as of a dataset with masks
LABEL_FOLDERS = {layout.place for layout in LAYOUTS.values()}
SIDEWAYS = range(5, 9)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class Shot:
    """The images of one input, in the order of time; an image that has none before it stands for those, too."""

    dataset: str  # or the folder that was named
    images: tuple[Path, ...]
    image_bits: int | None = None  # see `read_rgb`
    label: Path | None = None  # the file that says what is to be seen, in a dataset with labels
    labels: LabelMap | None = None  # what the values of that file mean, where it is a mask

    @property
    def image(self) -> Path:
        """The last one."""
        return self.images[-1]


def find_images(folder: Path) -> list[Path]:
    """All images below `folder`, however deep, sorted by path; without the labels of datasets and hidden files.

    Raises:
        FileNotFoundError: there is no such folder, or no image below it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
    images = sorted(path for path in found if LABEL_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1]))
    if not images:
        raise FileNotFoundError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} file in it, however deep")
    return images


def find_shots(folders: Sequence[Path], count: int = 1, image_bits: int | None = None) -> list[Shot]:
    """A shot of `count` images for every image below each folder, in the order of the folders and of the paths.

    The images before one are those of its own folder that come before it by name.

    Raises:
        FileNotFoundError: as `find_images`.
        ValueError: an image is below two of the folders.
    """
    names = [folder.resolve().name for folder in folders]
    shots, owners = [], dict[Path, Path]()
    for folder, name in zip(folders, names, strict=True):
        images = find_images(folder)
        for image in images:
            if (owner := owners.setdefault(image.resolve(), folder)) is not folder:
                raise ValueError(f"--images {folder}: {image} is below {owner}, too; name each image once")
        dataset = name if names.count(name) == 1 else str(folder)
        shots += [Shot(dataset, images, image_bits) for images in consecutive(images, count)]
    return shots


def consecutive(images: Sequence[Path], count: int) -> list[tuple[Path, ...]]:
    """Each image, which are sorted by path, behind the `count` - 1 of its folder before it."""
    found: list[tuple[Path, ...]] = []
    for image in images:
        before = found[-1] if found and found[-1][-1].parent == image.parent else (image,) * count
        found.append((*before[1:], image))
    return found


def split_shots(shots: Sequence[Shot]) -> tuple[list[Shot], list[Shot]]:
    """Training and validation: every tenth image of a folder is validation, of fewer than ten the last.

    Raises:
        ValueError: too few images for both.
    """
    kept = set()
    for name in dict.fromkeys(shot.dataset for shot in shots):
        own = [shot for shot in shots if shot.dataset == name]
        kept |= set(own[HELD_OUT - 1 :: HELD_OUT] or own[1:][-1:])
    training, validation = [shot for shot in shots if shot not in kept], [shot for shot in shots if shot in kept]
    if not training or not validation:
        raise ValueError(f"{shots[0].image}: the only image; training and validation need at least two of a folder")
    return training, validation


@dataclass(frozen=True)
class ShotFormat:
    """How the images of a shot become a tensor."""

    image: ImageFormat  # of each of them
    count: int = 1
    letterboxed: bool = False  # with the aspect ratio kept, as detectors take images

    def load(self, shot: Shot, *, reduced: bool = False) -> np.ndarray:
        """Decoded, turned upright and resized: uint8 RGB (count, H, W, 3); `reduced` as in `load_sample`.

        Those of a dataset with labels are cut to its region of interest, as `load_image` does it.

        Raises:
            ValueError: an image cannot be decoded, or with a label is to be turned or smaller than the region.
        """
        if len(shot.images) != self.count:
            raise ValueError(f"{shot.image}: a shot of {len(shot.images)} images, wanted {self.count}")
        return np.stack([self._load(path, shot, reduced) for path in shot.images])

    def _load(self, path: Path, shot: Shot, reduced: bool) -> np.ndarray:
        resize = letterbox if self.letterboxed else resize_image
        if shot.label is None:
            scale = 2 if reduced and self._is_twice_as_large(path) else 1
            return resize(read_rgb(path, shot.image_bits, scale=scale), self.image.hw)
        rgb = read_rgb(path, shot.image_bits, labelled=True)
        left, top, right, bottom = region_of(shot.dataset, path, rgb.shape[1], rgb.shape[0])
        return resize(rgb[top:bottom, left:right], self.image.hw)

    def _is_twice_as_large(self, path: Path) -> bool:
        if path.suffix.lower() not in JPEG_SUFFIXES:
            return False
        header = read_header(read_bytes(path).data, path)
        size = (header.width, header.height) if header.orientation in SIDEWAYS else (header.height, header.width)
        return size[0] >= 2 * self.image.hw[0] and size[1] >= 2 * self.image.hw[1]

    def to_tensor(self, images: np.ndarray) -> Tensor:
        """uint8 RGB (count, H, W, 3) -> normalised float32 (3 count, H, W)."""
        return torch.cat([self.image.to_tensor(rgb) for rgb in images])


def letterbox(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize to fit with the aspect ratio kept, centred on grey: uint8 (H, W, 3)."""
    left, top, width, height = letterbox_place(rgb.shape[:2], hw)
    canvas = np.full((*hw, 3), PADDING, np.uint8)
    canvas[top : top + height, left : left + width] = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


def letterbox_place(image_hw: Sequence[int], hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where `letterbox` puts an image of this size: left, top, width, height in pixels."""
    scale = min(hw[0] / image_hw[0], hw[1] / image_hw[1])
    height, width = (max(1, round(size * scale)) for size in image_hw)
    return (hw[1] - width) // 2, (hw[0] - height) // 2, width, height


ShotLoader = Callable[[Shot], np.ndarray]  # as `ShotFormat.load`


class ShotDataset(Dataset):
    """Shots as they are, for validation, calibration and benchmarks; `[index]` -> float32 (3 count, H, W)."""

    def __init__(self, shots: Sequence[Shot], shot_format: ShotFormat, load: ShotLoader | None = None):
        self.shots, self.shot_format, self.load = shots, shot_format, load or shot_format.load

    def __len__(self) -> int:
        return len(self.shots)

    def __getitem__(self, index: int) -> Tensor:
        return self.shot_format.to_tensor(self.load(self.shots[index]))


class AugmentedShots(Dataset):
    """Shots for training; `[epoch, index]` -> (float32 (3 count, H, W),), changed as `AugmentedDataset` changes images.

    All images of a shot are changed alike.
    """

    def __init__(self, shots: Sequence[Shot], shot_format: ShotFormat, strength: float, seed: int, load: ShotLoader):
        self.shots, self.shot_format, self.seed, self.load = shots, shot_format, seed, load
        self.transform = augmentation(strength) if strength else None

    def __len__(self) -> int:
        return len(self.shots)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor]:
        epoch, index = draw
        images = self.load(self.shots[index])
        if self.transform is None:
            return (self.shot_format.to_tensor(images),)
        changed = augment_images(images, self.transform, derived_seed(self.seed, epoch, index))
        return (torch.cat([self.shot_format.image.normalise(image) for image in changed]),)
