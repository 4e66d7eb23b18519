"""Datasets: where their files are, how they are paired and split, and images and masks as tensors."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from common.data.decoding import read_bytes, read_mask, read_rgb, read_values, stored_greys
from common.data.image_header import read_header
from common.data.labels import LABELS_FILE, LabelMap, class_weights, palette_labels, read_labels
from common.data.pairs import LAYOUT, BadSample, Sample, find_pairs, tell_once
from common.data.transforms import ImageFormat, augment, augmentation, resize_image, resize_mask
from common.system.signals import EXIT_CODES
from models.network import Colour, Network

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

JPEG_SUFFIXES = (".jpg", ".jpeg")
SPLITS = ("train", "val")


def whole(width: int, height: int) -> Box:
    """The region of interest of a dataset that has none."""
    return 0, 0, width, height


@dataclass(frozen=True)
class DatasetSpec:
    """A known dataset: its name below the data root, the region of interest by image size, and its splits."""

    name: str
    region: Callable[[int, int], Box] = whole  # (width, height) -> box, cut from image and mask before anything else
    train: bool = True  # False: validation only


DATASETS = (
    DatasetSpec("ACDC", lambda width, height: (0, 0, 1919, 990)),
    DatasetSpec("IDDAW", lambda width, height: (0, 476, 2047, 1500)),
    DatasetSpec("MUSES", lambda width, height: (0, 0, 1919, 918)),
    DatasetSpec("Mapillary_Vistas"),
    DatasetSpec("comma10k", lambda width, height: (0, 0, width - 1, int(0.7 * height))),
    DatasetSpec("BDD100K", lambda width, height: (0, 0, 1000, 500), train=False),
)


class Example(NamedTuple):
    """One sample, or a batch of them, as tensors."""

    image: Tensor  # float32 (3, H, W), normalised
    mask: Tensor  # int64 (H, W), class ids, or IGNORED
    class_weights: Tensor  # float32 (C,), from the pixel counts before the resize


def find_spec(name: str) -> DatasetSpec:
    """The known dataset of that name, without regard to case, or a user's own without a region of interest."""
    return next((spec for spec in DATASETS if spec.name.lower() == name.lower()), DatasetSpec(name))


@dataclass(frozen=True)
class SampleSource:
    """Where a script finds its samples, and how they are read."""

    root: Path
    network: str  # whose classes the labels name, for error messages
    classes: tuple[str, ...]
    mask_colours: tuple[tuple[Colour, str], ...] = ()  # stored colour -> class, of data without labels
    names: Sequence[str] | None = None  # of datasets; None: the known ones that are there
    labels: Path | None = None  # a file of labels that serves for all datasets
    skip_bad: bool = False  # leave out what cannot be read
    workers: int = 0  # processes that read while this is found out
    image_bits: int | None = None  # see `read_rgb`

    @classmethod
    def of(cls, name: str, network: Network, root: Path, **options: Any) -> "SampleSource":
        """That of the network `name`; `options` are the fields from `names` on."""
        return cls(root, name, network.classes, tuple(network.mask_colours.items()), **options)


def dataset_labels(folder: Path, source: SampleSource) -> LabelMap:
    """What the masks of the dataset in `folder` mean: by its own file, by that of the run, or by the network's palette.

    Raises:
        FileNotFoundError: the file of the run is not there.
        ValueError: a file is not one of labels, both are there and differ, or none and the network has no palette.
    """
    own, given = folder / LABELS_FILE, source.labels
    if not source.classes:
        raise ValueError(f"{source.network} has no classes that masks could name; give `classes` in its models.Network")
    there = own.exists() or own.is_symlink()  # a folder and a link to nothing are errors, too
    if there and given is None:
        return read_labels(own, source.classes)
    if given is not None:
        labels = read_labels(given, source.classes)
        if there and read_labels(own, source.classes).to_class != labels.to_class:
            raise ValueError(f"--labels {given}: {own} says otherwise; leave the flag out, or remove that file")
        return labels
    if not source.mask_colours:
        raise ValueError(
            f"{folder}: no {LABELS_FILE}, and {source.network} has no palette of its own; say what the masks hold in "
            f"{own}, or with --labels FILE"
        )
    return palette_labels(dict(source.mask_colours), source.classes, source.network)


def find_samples(source: SampleSource, split: str, bad: list[BadSample] | None = None) -> list[Sample]:
    """The samples of one split, sorted by dataset and file name; every tenth of a dataset is validation.

    Args:
        source: its names are known datasets without regard to case, or a user's; None takes every known one that is
            there and logs those that are not.
        split: "train" or "val"; of a dataset that is for validation only, the training part is left out.
        bad: takes the files without a partner; None: they are errors.

    Raises:
        FileNotFoundError: no dataset at all, one that was named is not there, or a folder is empty.
        ValueError: files without a partner, a dataset named twice or too small to be split, or none to train on.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
    root, names = source.root, source.names
    specs = [find_spec(name) for name in names] if names else _known_datasets(root)
    if twice := sorted({spec.name for spec in specs if specs.count(spec) > 1}):
        raise ValueError(f"datasets named more than once: {', '.join(twice)}; name each once")
    used = [spec for spec in specs if spec.train or split == "val"]
    if not used:
        listed = ", ".join(spec.name for spec in specs)
        raise ValueError(f"no train images in {listed} below {root}: for validation only; add a dataset to train on")
    return [sample for spec in sorted(used, key=lambda spec: spec.name) for sample in _split(source, spec, split, bad)]


def _known_datasets(root: Path) -> list[DatasetSpec]:
    found = [spec for spec in DATASETS if _folder(root, spec).is_dir()]
    if not found:
        known = ", ".join(spec.name for spec in DATASETS)
        raise FileNotFoundError(f"{root}: none of {known}; expected {LAYOUT}; name your own with --datasets NAME")
    if absent := [spec.name for spec in DATASETS if spec not in found]:
        tell_once(f"using {', '.join(spec.name for spec in found)}; not below {root}: {', '.join(absent)}")
    return found


def _folder(root: Path, spec: DatasetSpec) -> Path:
    return root / spec.name / spec.name


def _split(source: SampleSource, spec: DatasetSpec, split: str, bad: list[BadSample] | None) -> list[Sample]:
    folder = _folder(source.root, spec)
    pairs = find_pairs(folder, spec.name, dataset_labels(folder, source), bad)
    if len(pairs) < 10 and split == "val":
        raise ValueError(f"{folder}: {len(pairs)} images; every tenth is validation, so 10 are the least")
    samples = [replace(sample, image_bits=source.image_bits) for sample in pairs]
    return [sample for index, sample in enumerate(samples) if (index % 10 == 9) == (split == "val")]


class _OfDataset(Protocol):
    @property
    def dataset(self) -> str: ...


Item = TypeVar("Item", bound=_OfDataset)  # a Sample, or an image without a mask


def spread(samples: Sequence[Item], per_dataset: int | None) -> list[Item]:
    """At most `per_dataset` samples of each dataset (None: all), evenly spaced over its files; fewer are noted."""
    chosen = []
    for name in dict.fromkeys(sample.dataset for sample in samples):
        own = [sample for sample in samples if sample.dataset == name]
        count = min(per_dataset or len(own), len(own))
        if per_dataset and count < per_dataset:
            tell_once(f"{name}: {count} images, {per_dataset} asked for; all are taken")
        chosen += evenly_spaced(own, count)
    return chosen


def evenly_spaced(samples: Sequence[Item], count: int) -> list[Item]:
    """`count` samples, or all where there are fewer, at even distances, so that every dataset has its share."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


Loaded = tuple[np.ndarray, np.ndarray, np.ndarray]  # what `load_sample` returns
Loader = Callable[[Sample, tuple[int, int]], Loaded]


def load_image(sample: Sample, input_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode, cut the region of interest and resize: uint8 RGB (H, W, 3), and the file's own (height, width).

    Raises:
        ValueError: the file cannot be decoded, or the region does not fit.
    """
    image = read_rgb(sample.image, sample.image_bits, labelled=True)
    height, width = image.shape[:2]
    left, top, right, bottom = _region(sample, width, height)
    return resize_image(image[top:bottom, left:right], input_hw), (height, width)


def _load_reduced_image(sample: Sample, input_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """`load_image` of a JPEG file decoded at half its size, where its region is at least twice the input size."""
    header = read_header(read_bytes(sample.image).data, sample.image)
    width, height = header.width, header.height
    left, top, right, bottom = _region(sample, width, height)
    if right - left < 2 * input_hw[1] or bottom - top < 2 * input_hw[0]:
        return load_image(sample, input_hw)
    image = read_rgb(sample.image, labelled=True, scale=2)
    image = image[top // 2 : -(-bottom // 2), left // 2 : -(-right // 2)]  # the decoder rounds sizes up
    return resize_image(image, input_hw), (height, width)


def _region(sample: Sample, width: int, height: int) -> Box:
    box = find_spec(sample.dataset).region(width, height)
    if box[2] > width or box[3] > height:
        raise ValueError(
            f"{sample.image}: {width}x{height}, smaller than the region of interest of {sample.dataset}, which ends at "
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
    left, top, right, bottom = _region(sample, width, height)
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
