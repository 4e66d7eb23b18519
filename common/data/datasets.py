"""Datasets: where their files are, how they are paired and split, and what their masks mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.data.labels import LABELS_FILE, LabelMap, palette_labels, read_labels
from common.data.pairs import MASKED, BadSample, Layout, Sample, find_pairs, tell_once
from models.network import Colour, Network

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

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


def find_spec(name: str) -> DatasetSpec:
    """The known dataset of that name, without regard to case, or a user's own without a region of interest."""
    return next((spec for spec in DATASETS if spec.name.lower() == name.lower()), DatasetSpec(name))


class _OfDataset(Protocol):
    @property
    def dataset(self) -> str: ...


Item = TypeVar("Item", bound=_OfDataset)  # a Sample, or a Shot
Anything = TypeVar("Anything")


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
    default: LabelMap | None = None  # what masks mean where no file says it, in the place of the palette

    @classmethod
    def of(cls, name: str, network: Network, root: Path, **options: Any) -> "SampleSource":
        """That of the network `name`, which gives a map of classes; `options` are the fields from `names` on."""
        if network.classes and not network.maps_classes:
            raise ValueError(
                f"{name}: its task is {network.task}, and masks of classes are for a map of them; train it on --images"
            )
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
    if source.default is not None:
        return source.default
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

    def find(folder: Path, dataset: str) -> list[Sample]:
        pairs = find_pairs(folder, dataset, dataset_labels(folder, source), bad)
        return [replace(sample, image_bits=source.image_bits) for sample in pairs]

    return of_split(source, split, find, MASKED)


def of_split(
    source: SampleSource, split: str, find: Callable[[Path, str], Sequence[Item]], layout: Layout
) -> list[Item]:
    """What `find` (folder of a dataset, its name) gives for a split, as `find_samples`; `layout` is for errors."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
    root, names = source.root, source.names
    specs = [find_spec(name) for name in names] if names else _known_datasets(root, layout)
    if twice := sorted({spec.name for spec in specs if specs.count(spec) > 1}):
        raise ValueError(f"datasets named more than once: {', '.join(twice)}; name each once")
    used = [spec for spec in specs if spec.train or split == "val"]
    if not used:
        listed = ", ".join(spec.name for spec in specs)
        raise ValueError(f"no train images in {listed} below {root}: for validation only; add a dataset to train on")
    return [
        sample
        for spec in sorted(used, key=lambda spec: spec.name)
        for sample in _part(find(_folder(root, spec), spec.name), split, _folder(root, spec))
    ]


def _known_datasets(root: Path, layout: Layout) -> list[DatasetSpec]:
    found = [spec for spec in DATASETS if _folder(root, spec).is_dir()]
    if not found:
        known = ", ".join(spec.name for spec in DATASETS)
        raise FileNotFoundError(f"{root}: none of {known}; expected {layout}; name your own with --datasets NAME")
    if absent := [spec.name for spec in DATASETS if spec not in found]:
        tell_once(f"using {', '.join(spec.name for spec in found)}; not below {root}: {', '.join(absent)}")
    return found


def _folder(root: Path, spec: DatasetSpec) -> Path:
    return root / spec.name / spec.name


def _part(samples: Sequence[Item], split: str, folder: Path) -> list[Item]:
    if len(samples) < 10 and split == "val":
        raise ValueError(f"{folder}: {len(samples)} images; every tenth is validation, so 10 are the least")
    return [sample for index, sample in enumerate(samples) if (index % 10 == 9) == (split == "val")]


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


def evenly_spaced(samples: Sequence[Anything], count: int) -> list[Anything]:
    """`count` samples, or all where there are fewer, at even distances, so that every dataset has its share."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]
