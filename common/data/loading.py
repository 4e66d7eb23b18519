"""Samples as networks take them: read, cut to their region, resized, augmented; and the order of an epoch."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from common.data.datasets import Box, find_spec
from common.data.decoding import read_bytes, read_mask, read_rgb, read_values, stored_greys
from common.data.image_header import read_header
from common.data.labels import class_weights
from common.data.pairs import Sample
from common.data.transforms import ImageFormat, augment, augmentation, resize_image, resize_mask
from common.system.signals import EXIT_CODES

JPEG_SUFFIXES = (".jpg", ".jpeg")


class Example(NamedTuple):
    """One sample, or a batch of them, as tensors."""

    image: Tensor  # float32 (3, H, W), normalised
    mask: Tensor  # int64 (H, W), class ids, or IGNORED
    class_weights: Tensor  # float32 (C,), from the pixel counts before the resize


Loaded = tuple[np.ndarray, np.ndarray, np.ndarray]  # what `load_sample` returns
Loader = Callable[[Sample, tuple[int, int]], Loaded]


def load_image(sample: Sample, input_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode, cut the region of interest and resize: uint8 RGB (H, W, 3), and the file's own (height, width).

    Raises:
        ValueError: the file cannot be decoded, or the region does not fit.
    """
    image = read_rgb(sample.image, sample.image_bits, labelled=True)
    height, width = image.shape[:2]
    left, top, right, bottom = region_of(sample.dataset, sample.image, width, height)
    return resize_image(image[top:bottom, left:right], input_hw), (height, width)


def _load_reduced_image(sample: Sample, input_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """`load_image` of a JPEG file decoded at half its size, where its region is at least twice the input size."""
    header = read_header(read_bytes(sample.image).data, sample.image)
    width, height = header.width, header.height
    left, top, right, bottom = region_of(sample.dataset, sample.image, width, height)
    if right - left < 2 * input_hw[1] or bottom - top < 2 * input_hw[0]:
        return load_image(sample, input_hw)
    image = read_rgb(sample.image, labelled=True, scale=2)
    image = image[top // 2 : -(-bottom // 2), left // 2 : -(-right // 2)]  # the decoder rounds sizes up
    return resize_image(image, input_hw), (height, width)


def region_of(dataset: str, image: Path, width: int, height: int) -> Box:
    """The region of interest in an image of this size; ValueError where it does not fit."""
    box = find_spec(dataset).region(width, height)
    if box[2] > width or box[3] > height:
        raise ValueError(
            f"{image}: {width}x{height}, smaller than the region of interest of {dataset}, which ends at "
            f"{box[2]}x{box[3]}; use the dataset's native size"
        )
    return box


def load_ids(sample: Sample, image_hw: tuple[int, int]) -> np.ndarray:
    """The class ids of the mask in the region of interest, before any resize: uint8 (H, W).

    Raises:
        ValueError: the mask has not its image's size `image_hw`, or holds what its labels do not name.
    """
    read = read_mask if sample.labels.stored == "colours" else read_values
    mask, (height, width) = read(sample.mask), image_hw
    if mask.shape[:2] != image_hw:
        raise ValueError(
            f"{sample.mask}: {mask.shape[1]}x{mask.shape[0]}, but {sample.image.name} is {width}x{height}; "
            "a mask has the size of its image"
        )
    left, top, right, bottom = region_of(sample.dataset, sample.image, width, height)
    try:
        return sample.labels.class_ids(mask[top:bottom, left:right])
    except ValueError as error:
        greys = stored_greys(sample.mask) if sample.labels.stored == "colours" else ""
        raise ValueError(f"{sample.mask}: {error}{'; ' if greys else ''}{greys}") from error


def load_sample(sample: Sample, input_hw: tuple[int, int], *, reduced: bool = False) -> Loaded:
    """Image and mask of one sample.

    With `reduced` a JPEG image whose region is at least twice the input size is decoded at half its size, in about half
    the time: each pixel is then the mean of four, which the resize alone would not take, and the region may be off by
    half a pixel. The mask is the same.

    Returns uint8 RGB (H, W, 3), class ids uint8 (H, W), and the class weights float32 (C,), which come from the pixels
    of the region before the resize.

    Raises:
        ValueError: image and mask differ in size, the region does not fit, or the mask has unknown values.
    """
    load = _load_reduced_image if reduced and sample.image.suffix.lower() in JPEG_SUFFIXES else load_image
    image, size = load(sample, input_hw)
    ids = load_ids(sample, size)
    return image, resize_mask(ids, input_hw), class_weights(ids, sample.labels.class_count)


class SampleDataset(Dataset):
    """Samples as they are, for validation, calibration and benchmarks; `[index]` -> Example."""

    def __init__(self, samples: Sequence[Sample], image_format: ImageFormat, load: Loader = load_sample):
        self.samples, self.image_format, self.load = samples, image_format, load

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        image, ids, weights = self.load(self.samples[index], self.image_format.hw)
        return Example(self.image_format.to_tensor(image), torch.from_numpy(ids).long(), torch.from_numpy(weights))


class AugmentedDataset(Dataset):
    """Samples for training; `[epoch, index]` -> Example, whose augmentation depends on seed, epoch and index alone."""

    def __init__(
        self,
        samples: Sequence[Sample],
        image_format: ImageFormat,
        strength: float,
        seed: int,
        load: Loader = load_sample,
    ):
        self.samples, self.image_format, self.seed, self.load = samples, image_format, seed, load
        self.transform = augmentation(strength) if strength else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: tuple[int, int]) -> Example:
        epoch, index = draw
        rgb, ids, weights = self.load(self.samples[index], self.image_format.hw)
        if self.transform is None:
            return Example(self.image_format.to_tensor(rgb), torch.from_numpy(ids).long(), torch.from_numpy(weights))
        image, mask = augment(rgb, ids, self.transform, derived_seed(self.seed, epoch, index))
        normalised = self.image_format.normalise(image.as_subclass(Tensor))
        return Example(normalised, mask.as_subclass(Tensor).long(), torch.from_numpy(weights))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield (epoch, index) in an order that depends on seed and epoch alone, from position `start` to `stop` of it."""

    def __init__(self, length: int, epoch: int, seed: int, start: int = 0, stop: int | None = None):
        self.length, self.epoch, self.seed = length, epoch, seed
        self.start, self.stop = start, length if stop is None else min(stop, length)

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        return iter([(self.epoch, index) for index in order[self.start : self.stop].tolist()])


def derived_seed(seed: int, *position: int) -> int:
    """A seed of its own for a place in a run: an epoch, or an epoch and an image."""
    return int(np.random.SeedSequence((seed % 2**64, *position)).generate_state(1)[0])


def worker_init(worker: int) -> None:
    """One thread per worker process: the workers are the parallelism. The main process sees to signals."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
