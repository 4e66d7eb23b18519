"""SceneSeg as the tests take it: its row, its classes and labels, how it takes images, and samples in its colours."""

from collections.abc import Sequence
from pathlib import Path

from common.data.classes import classes_of
from common.data.datasets import SampleSource, find_samples
from common.data.labels import palette_labels
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from models.family import NETWORKS

NAME = "SceneSeg"
NETWORK = NETWORKS[NAME]
CLASSES = classes_of(NETWORK)
LABELS = palette_labels(NETWORK.mask_colours, NETWORK.classes, NAME)
NATIVE = ImageFormat.of(NETWORK)


def format_of(hw: tuple[int, int]) -> ImageFormat:
    """How it takes images of another size."""
    return ImageFormat.of(NETWORK, hw)


def found(root: Path, names: Sequence[str] | None, split: str) -> list[Sample]:
    """The samples of datasets in the family's colours."""
    return find_samples(SampleSource.of(NAME, NETWORK, root, names=names), split)
