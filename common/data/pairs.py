"""Images and their labels on the disk, paired by their stems, and what cannot be paired or used."""

import functools
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.data.labels import LabelMap

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LISTED_FILES = 5  # that an error message spells out


@dataclass(frozen=True)
class Layout:
    """Where labels lie in the folder of a dataset."""

    place: str  # a folder of files with the images' stems, or one file
    suffixes: tuple[str, ...]  # of the files in the folder
    label: str  # what one is called

    def __str__(self) -> str:
        if not self.suffixes:
            return f"{IMAGES} and ROOT/NAME/NAME/{self.place}, with a row for each image's stem"
        suffixes = "|".join(self.suffixes).replace("|.", "|")
        return f"{IMAGES} and ROOT/NAME/NAME/{self.place}/*{suffixes}, with one stem for image and {self.label}"


IMAGES = "ROOT/NAME/NAME/images/*.png|jpg|jpeg"
MASKED = Layout("gt_masks", (".png",), "mask")
LAYOUTS = {  # by the task of a network; masks are of classes, or of a foreground
    "segmentation": MASKED,
    "depth": Layout("gt_depth", (".png", ".npy"), "depth"),
    "lanes": Layout("gt_lanes", (".png",), "lanes"),
    "steering": Layout("steering.csv", (), "angle"),
    "detection": Layout("gt_boxes", (".txt",), "objects"),
}


@dataclass(frozen=True)
class Sample:
    """An image and its mask, the dataset they belong to, and how both are read."""

    dataset: str
    image: Path
    mask: Path
    labels: LabelMap  # what the mask's values mean
    image_bits: int | None = None  # of data in an image of 16 bits a value


@dataclass(frozen=True)
class BadSample:
    """A file that a run leaves out, and why."""

    dataset: str
    path: str
    reason: str


def find_pairs(folder: Path, dataset: str, labels: LabelMap, bad: list[BadSample] | None = None) -> list[Sample]:
    """Pair `folder`/images with `folder`/gt_masks by file stem, sorted by file name.

    Args:
        bad: takes the files that have no partner, or a stem that another file has, too; None: they are errors.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        ValueError: files without a partner, or two of one stem.
    """
    return [Sample(dataset, image, mask, labels) for image, mask in find_labelled(folder, dataset, MASKED, bad)]


def find_labelled(
    folder: Path, dataset: str, layout: Layout, bad: list[BadSample] | None = None
) -> list[tuple[Path, Path]]:
    """`find_pairs` for the labels of a layout: (image, label)."""
    images, twin_images = _by_stem(folder / "images", IMAGE_SUFFIXES, layout, bad is not None)
    labels, twin_labels = _by_stem(folder / layout.place, layout.suffixes, layout, bad is not None)
    lonely = [(images | labels)[stem] for stem in sorted(images.keys() ^ labels.keys())]
    if lonely and bad is None:
        names = listed(str(path.relative_to(folder)) for path in lonely)
        needed = f"{layout.place}/X{layout.suffixes[0]}"
        raise ValueError(f"{folder}: {len(lonely)} files have no partner: {names}; images/X.jpg needs {needed}")
    if bad is not None:
        bad += [BadSample(dataset, str(path), "no partner") for path in lonely]
        bad += [BadSample(dataset, str(path), "two files of one stem") for path in twin_images + twin_labels]
    paired = sorted(images.keys() & labels.keys(), key=lambda stem: images[stem].name)
    return [(images[stem], labels[stem]) for stem in paired]


def find_listed(
    folder: Path, dataset: str, layout: Layout, stems: Collection[str], bad: list[BadSample] | None = None
) -> list[Path]:
    """The images of the dataset in `folder`, whose labels one file lists by their stems; as `find_labelled`."""
    images, twins = _by_stem(folder / "images", IMAGE_SUFFIXES, layout, bad is not None)
    lonely = sorted(images.keys() ^ set(stems))
    if lonely and bad is None:
        raise ValueError(
            f"{folder}: {len(lonely)} stems have no partner: {listed(lonely)}; images/X.jpg needs a row X in "
            f"{layout.place}"
        )
    if bad is not None:
        bad += [
            BadSample(dataset, str(images.get(stem, folder / layout.place)), f"{stem}: no partner") for stem in lonely
        ]
        bad += [BadSample(dataset, str(path), "two files of one stem") for path in twins]
    return sorted((path for stem, path in images.items() if stem in stems), key=lambda path: path.name)


def _by_stem(folder: Path, suffixes: tuple[str, ...], layout: Layout, skip: bool) -> tuple[dict[str, Path], list[Path]]:
    """The files by stem, and with `skip` those that share one, which are then left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {layout}")
    present = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    files = [path for path in present if path.suffix.lower() in suffixes]
    if not files:
        raise FileNotFoundError(f"{folder}: no {', '.join(suffixes)} file in it; expected {layout}")
    if others := [path.name for path in present if path.suffix.lower() not in suffixes]:
        tell_once(f"{folder}: {len(others)} files are not read, being no {', '.join(suffixes)}: {listed(others)}")
    stems = {path.stem: path for path in files}
    twins = [path for path in files if stems[path.stem] != path]
    if twins and skip:
        shared = {path.stem for path in twins}
        left_out = [path for path in files if path.stem in shared]
        return {stem: path for stem, path in stems.items() if stem not in shared}, left_out
    if twins:
        pairs = listed(f"{path.name} and {stems[path.stem].name}" for path in twins)
        raise ValueError(
            f"{folder}: {len(twins)} files have the same stem as another: {pairs}; a {layout.label} has one image"
        )
    return stems, []


@functools.cache
def tell_once(message: str) -> None:
    """A note; training and validation images of one folder would give the same twice."""
    logger.info(message)


def listed(names: Iterable[str]) -> str:
    """The first of the names, as an error message spells them out."""
    names = list(names)
    return ", ".join(names[:LISTED_FILES] + ["..."] * (len(names) > LISTED_FILES))
