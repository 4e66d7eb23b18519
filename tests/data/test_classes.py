"""Classes: which of them are scored, and how they look."""

from itertools import pairwise

import numpy as np
import pytest

from common.data.classes import Classes, classes_of, distinct_colours
from common.data.labels import IGNORED, LabelMap
from common.data.pairs import Sample
from models.network import MOST_CLASSES, Network

NAMES = ("Sky", "Road", "Car", "Tree")


def network_of(classes=NAMES, **options):
    return Network(build=object, input_shape=(3, 36, 52), classes=classes, **options)


def samples_of(tmp_path, *to_classes):
    return [
        Sample("Town", tmp_path / f"{index}.png", tmp_path / f"{index}.png", LabelMap("values", to_class, 4, "l.json"))
        for index, to_class in enumerate(to_classes)
    ]


def test_colours_by_hand():
    """Hue 0 at 85 % and 95 %; 0.618034 of a turn at 55 % and 75 %: between blue's neighbours, red 0.75 * 0.45."""
    assert distinct_colours(2) == ((242, 36, 36), (86, 117, 191))


def test_colours_stay_and_differ():
    colours = distinct_colours(MOST_CLASSES)
    assert distinct_colours(7) == colours[:7]
    assert len(set(colours)) == MOST_CLASSES
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def test_the_colours_of_usual_networks_are_told_apart():
    """The least distance of any two of 21 (Pascal VOC), in levels of 255, and of neighbours in the list."""
    colours = np.array(distinct_colours(21), float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=2)
    assert distances[~np.eye(21, dtype=bool)].min() > 25
    assert min(np.linalg.norm(first - second) for first, second in pairwise(colours)) > 80


def test_colours_of_the_row_go_first():
    assert classes_of(network_of()).colours == distinct_colours(4)
    own = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 0, 0))
    assert classes_of(network_of(colours=own)).colours == own


def test_those_are_scored_that_labels_of_any_sample_name(tmp_path):
    first, second = samples_of(tmp_path, ((0, 3), (1, 1), (2, IGNORED)), ((7, 1), (8, 0)))
    assert classes_of(network_of(), [first]).scored == (1, 3)
    both = classes_of(network_of(), [first, second])
    assert (both.names, both.scored, both.scored_names) == (NAMES, (0, 1, 3), ("Sky", "Road", "Tree"))
    assert classes_of(network_of()).scored == (0, 1, 2, 3)  # without labels all


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_pictures_show_classes_in_their_colours_and_what_is_ignored_in_black(kind):
    classes = Classes(NAMES, ((61, 93, 255), (255, 28, 145), (0, 255, 220), (9, 9, 9)), (0, 1))
    picture = classes.colourise(np.array([[0, 1, 2], [3, IGNORED, 0]], kind))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [[61, 93, 255], [255, 28, 145], [0, 255, 220]],
        [[9, 9, 9], [0, 0, 0], [61, 93, 255]],
    ]
