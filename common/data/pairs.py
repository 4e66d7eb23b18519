"""Images and masks on the disk, paired by their stems, and what cannot be paired or used."""

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.data.labels import LabelMap

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MASKS = "gt_masks"  # the folder of a dataset's masks
LAYOUT = "ROOT/NAME/NAME/images/*.png|jpg|jpeg and ROOT/NAME/NAME/gt_masks/*.png, with one stem for image and mask"
LISTED_FILES = 5  # that an error message spells out


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
    images, twin_images = _by_stem(folder / "images", IMAGE_SUFFIXES, bad is not None)
    masks, twin_masks = _by_stem(folder / MASKS, (".png",), bad is not None)
    lonely = [(images | masks)[stem] for stem in sorted(images.keys() ^ masks.keys())]
    if lonely and bad is None:
        names = _listed(str(path.relative_to(folder)) for path in lonely)
        raise ValueError(f"{folder}: {len(lonely)} files have no partner: {names}; images/X.jpg needs gt_masks/X.png")
    if bad is not None:
        bad += [BadSample(dataset, str(path), "no partner") for path in lonely]
        bad += [BadSample(dataset, str(path), "two files of one stem") for path in twin_images + twin_masks]
    paired = sorted(images.keys() & masks.keys(), key=lambda stem: images[stem].name)
    return [Sample(dataset, images[stem], masks[stem], labels) for stem in paired]


def _by_stem(folder: Path, suffixes: tuple[str, ...], skip: bool) -> tuple[dict[str, Path], list[Path]]:
    """The files by stem, and with `skip` those that share one, which are then left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {LAYOUT}")
    present = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    files = [path for path in present if path.suffix.lower() in suffixes]
    if not files:
        raise FileNotFoundError(f"{folder}: no {', '.join(suffixes)} file in it; expected {LAYOUT}")
    if others := [path.name for path in present if path.suffix.lower() not in suffixes]:
        tell_once(f"{folder}: {len(others)} files are not read, being no {', '.join(suffixes)}: {_listed(others)}")
    stems = {path.stem: path for path in files}
    twins = [path for path in files if stems[path.stem] != path]
    if twins and skip:
        shared = {path.stem for path in twins}
        left_out = [path for path in files if path.stem in shared]
        return {stem: path for stem, path in stems.items() if stem not in shared}, left_out
    if twins:
        pairs = _listed(f"{path.name} and {stems[path.stem].name}" for path in twins)
        raise ValueError(f"{folder}: {len(twins)} files have the same stem as another: {pairs}; a mask has one image")
    return stems, []


@functools.cache
def tell_once(message: str) -> None:
    """A note; training and validation images of one folder would give the same twice."""
    logger.info(message)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:LISTED_FILES] + ["..."] * (len(names) > LISTED_FILES))
