"""Shots of datasets with labels that are no map of classes: found, paired with their labels, split."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.data.datasets import SampleSource, dataset_labels, of_split
from common.data.label_files import angles_of
from common.data.labels import LabelMap
from common.data.pairs import IMAGE_SUFFIXES, LAYOUTS, MASKED, BadSample, find_labelled, find_listed
from common.data.shots import Shot, consecutive
from models import Network

# of masks that no file speaks of; ids are refused, since 255 would be ignored among those
FOREGROUND = LabelMap("values", ((0, 0), (255, 1)), 2, "a mask without labels.json (0: not there, 255: there)")
REST = "background"  # of a mask of one foreground, in a file of labels


def labelled_source(name: str, network: Network, root: Path, **options: Any) -> SampleSource:
    """Where the labels of the network `name` are, which gives no map of classes; `options` as of `SampleSource.of`.

    Raises:
        ValueError: no labels are known for its task, or a file of what masks mean is given for labels of another kind.
    """
    if network.task not in LAYOUTS:
        raise ValueError(
            f"{name}: there are no labels for its task {network.task!r}; its outputs are compared with --images, and "
            f"scored are {', '.join(LAYOUTS)}"
        )
    if network.task != "segmentation":
        if options.get("labels"):
            raise ValueError(f"--labels: says what masks mean, and {name} has labels of {network.task}; leave it out")
        return SampleSource(root, name, network.classes, **options)
    return SampleSource(root, name, (REST, *(network.classes or ("foreground",))), default=FOREGROUND, **options)


def find_labelled_shots(
    source: SampleSource, network: Network, split: str, bad: list[BadSample] | None = None
) -> list[Shot]:
    """Those of one split, sorted by dataset and file name, as `find_samples` finds samples.

    A shot of several images has those before it in the folder, whether these have a label or not.

    Raises:
        FileNotFoundError, ValueError: as `find_samples`, or a file of angles that cannot be read.
    """
    layout = LAYOUTS[network.task]
    return of_split(source, split, partial(_shots_of, source, network, bad), layout)


def _shots_of(
    source: SampleSource, network: Network, bad: list[BadSample] | None, folder: Path, dataset: str
) -> Sequence[Shot]:
    layout = LAYOUTS[network.task]
    if layout.suffixes:
        pairs = dict(find_labelled(folder, dataset, layout, bad))
    else:
        angles = folder / layout.place
        pairs = dict.fromkeys(find_listed(folder, dataset, layout, angles_of(angles), bad), angles)
    labels = dataset_labels(folder, source) if layout == MASKED else None
    present = (path for path in (folder / "images").iterdir() if path.name[0] != ".")
    images = sorted(path for path in present if path.suffix.lower() in IMAGE_SUFFIXES)
    shots = (Shot(dataset, found, source.image_bits) for found in consecutive(images, network.images))
    return [replace(shot, label=pairs[shot.image], labels=labels) for shot in shots if shot.image in pairs]
