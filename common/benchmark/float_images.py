"""The images of a choice: one half to choose by, the other to check the choice; those that calibrate are neither."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from common.benchmark.image_counts import LabelledInput
from common.data.loading import SampleDataset
from common.data.pairs import Sample
from common.data.shots import Shot, ShotDataset
from common.data.transforms import ImageFormat
from common.networks.image_inputs import ImageInputs
from common.scoring.statistics import FEWEST_IMAGES
from common.system.files import sha256


class _Image(Protocol):
    @property
    def dataset(self) -> str: ...

    @property
    def image(self) -> Path: ...


Item = TypeVar("Item", bound=_Image)


def divide(images: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The 1st, 3rd, 5th, ... image of each dataset to choose by, and the others to check.

    Raises:
        ValueError: fewer of either than an interval takes.
    """
    names = dict.fromkeys(each.dataset for each in images)
    by_dataset = [[each for each in images if each.dataset == name] for name in names]
    choosing, checking = ([each for own in by_dataset for each in own[first::2]] for first in (0, 1))
    if len(checking) < FEWEST_IMAGES:
        raise ValueError(
            f"--auto_float: {len(images)} images leave {len(checking)} to check the choice; give {2 * FEWEST_IMAGES} "
            "or more beside those that calibrate"
        )
    return choosing, checking


def division(choosing: Sequence[object], checking: Sequence[object]) -> str:
    """What `divide` did, in a sentence."""
    return (
        f"chosen on {len(choosing)} images, the 1st, 3rd, ... of each dataset, and checked on the {len(checking)} "
        "others; images that calibrate are neither"
    )


def without(images: Sequence[Item], calibration: Iterable[Path]) -> list[Item]:
    """Those of `images` that are not among the files `calibration`, nor copies of one."""
    used = list(calibration)
    paths, contents = {path.resolve() for path in used}, {sha256(path) for path in used}
    return [each for each in images if each.image.resolve() not in paths and sha256(each.image) not in contents]


def labelled_inputs(samples: Sequence[Sample], image_format: ImageFormat) -> list[LabelledInput]:
    """Inputs of samples with masks of classes."""
    dataset = SampleDataset(samples, image_format)
    examples = ((sample, dataset[index]) for index, sample in enumerate(samples))
    return [LabelledInput(example.image[None], example.mask[None], sample.dataset) for sample, example in examples]


def shot_inputs(shots: Sequence[Shot], inputs: ImageInputs) -> list[LabelledInput]:
    """Inputs of images without labels."""
    dataset = ShotDataset(shots, inputs.shots)
    made = ((shot, inputs(dataset[index][None])) for index, shot in enumerate(shots))
    return [LabelledInput(image.cpu().contiguous(), None, shot.dataset) for shot, image in made]
