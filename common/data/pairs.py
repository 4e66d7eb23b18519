"""Images and masks on the disk, paired by their stems, and what cannot be paired or used."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "ROOT/NAME/NAME/images/*.png|jpg|jpeg and ROOT/NAME/NAME/gt_masks/*.png, with one stem for image and mask"
LISTED_FILES = 5  # that an error message spells out


@dataclass(frozen=True)
class Sample:
    """An image and its mask, and the name of the dataset they belong to."""

    dataset: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class BadSample:
    """A file that a run leaves out, and why."""

    dataset: str
    path: str
    reason: str


def find_pairs(folder: Path, dataset: str, bad: list[BadSample] | None = None) -> list[Sample]:
    """Pair `folder`/images with `folder`/gt_masks by file stem, sorted by file name.

    Args:
        bad: takes the files that have no partner, or a stem that another file has, too; None: they are errors.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        ValueError: files without a partner, or two of one stem.
    """
    images, twin_images = _by_stem(folder / "images", IMAGE_SUFFIXES, bad is not None)
    masks, twin_masks = _by_stem(folder / "gt_masks", (".png",), bad is not None)
    if lonely := sorted(images.keys() ^ masks.keys()):
        paths = [(images | masks)[stem] for stem in lonely]
        if bad is None:
            names = _listed(str(path.relative_to(folder)) for path in paths)
            raise ValueError(
                f"{folder}: {len(lonely)} files have no partner: {names}; images/X.jpg needs gt_masks/X.png"
            )
        reasons = {path: "no partner" for path in paths} | {
            path: "two files of one stem" for path in twin_images + twin_masks
        }
        bad += [BadSample(dataset, str(path), reason) for path, reason in reasons.items()]
        images = {stem: path for stem, path in images.items() if stem in masks}
    return [Sample(dataset, images[stem], masks[stem]) for stem in sorted(images, key=lambda stem: images[stem].name)]


def _by_stem(folder: Path, suffixes: tuple[str, ...], skip: bool) -> tuple[dict[str, Path], list[Path]]:
    """The files by stem, and with `skip` those that share one, which are then left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {LAYOUT}")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and path.name[0] != "."]
    if not files:
        raise FileNotFoundError(f"{folder}: no {', '.join(suffixes)} file in it; expected {LAYOUT}")
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


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:LISTED_FILES] + ["..."] * (len(names) > LISTED_FILES))
