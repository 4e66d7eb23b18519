"""The classes of a network: their names, their colours in pictures, and which of them are scored."""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.data.pairs import Sample
from models.network import Colour, Network

GOLDEN_TURN = 0.618034  # of the hues: however many classes there are, neighbours in the list are far apart
SHADES = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.65))  # saturation and value, in turns


@dataclass(frozen=True)
class Classes:
    """What class ids mean, in the order of the output's channels."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]  # in pictures, RGB
    scored: tuple[int, ...]  # those that labels can name; a prediction of another one is wrong

    @property
    def scored_names(self) -> tuple[str, ...]:
        """The names of the scored classes, in their order."""
        return tuple(self.names[each] for each in self.scored)

    def colourise(self, ids: np.ndarray) -> np.ndarray:
        """Class ids (H, W) -> uint8 RGB (H, W, 3); ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        return table[ids]


def classes_of(network: Network, samples: Iterable[Sample] = ()) -> Classes:
    """The classes of a network; those are scored that the labels of `samples` name, without samples all.

    Raises:
        ValueError: it gives no map of them.
    """
    if network.classes and not network.maps_classes:
        raise ValueError(f"no map of classes, which is wanted here: the network's task is {network.task!r}")
    maps = {sample.labels for sample in samples}
    scored = sorted({each for labels in maps for each in labels.scored}) if maps else range(len(network.classes))
    return Classes(network.classes, network.colours or distinct_colours(len(network.classes)), tuple(scored))


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Colours that are told apart, the same for a class however many follow it."""
    return tuple(_colour(index) for index in range(count))


def _colour(index: int) -> Colour:
    saturation, value = SHADES[index % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_TURN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
