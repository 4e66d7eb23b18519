"""The palette of a network: masks of its colours, and of others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.labels import palette_labels
from models.scene_seg import CLASSES, PALETTE
from tests.family import LABELS

COLOURS = [colour for _, colour, _ in PALETTE]
IDS = np.array([CLASSES.index(name) for *_, name in PALETTE])
near_colours = st.sampled_from(COLOURS).flatmap(
    lambda colour: st.tuples(*(st.integers(max(v - 1, 0), min(v + 1, 255)) for v in colour))
)


def test_every_colour_of_the_palette_has_its_class():
    assert LABELS.class_ids(np.array([COLOURS], np.uint8)).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2]]
    assert LABELS.scored == (0, 1, 2)


def test_unknown_colours_are_counted():
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[0, :3] = (1, 2, 3)
    mask[1, 0] = (61, 184, 254)
    message = r"^2 colours \(4 pixels\) that are not among the 9 of the palette of SceneSeg: "
    with pytest.raises(ValueError, match=message + r"\(1, 2, 3\): 3 pixels, \(61, 184, 254\): 1 pixels$"):
        LABELS.class_ids(mask)


@settings(max_examples=200, deadline=None)
@given(st.one_of(near_colours, st.permutations([255, 61, 0]).map(tuple), st.tuples(*[st.integers(0, 255)] * 3)))
def test_only_the_exact_colours_are_accepted(colour):
    mask = np.array([[colour]], np.uint8)
    if colour in COLOURS:
        assert LABELS.class_ids(mask)[0, 0] == IDS[COLOURS.index(colour)]
    else:
        with pytest.raises(ValueError, match="^1 colours"):
            LABELS.class_ids(mask)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99))
def test_views_of_a_mask_are_looked_up_where_they_are(seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(PALETTE), (12, 17))
    mask, ids = np.array(COLOURS, np.uint8)[rows], IDS[rows]
    top, left = rng.integers(0, 8, 2)
    for view in (np.s_[top:, left:], np.s_[::-1], np.s_[:, ::-2], np.s_[top : top + 1, left : left + 1]):
        assert (LABELS.class_ids(mask[view]) == ids[view]).all()


def test_the_most_frequent_unknown_colours_come_first_with_the_total():
    mask = np.zeros((1, 21, 3), np.uint8)
    mask[0, :, 0] = np.repeat(np.arange(1, 7), np.arange(1, 7))
    with pytest.raises(ValueError) as error:
        LABELS.class_ids(mask)
    assert str(error.value).startswith("6 colours (21 pixels)")
    listed = [f"({red}, 0, 0): {red} pixels" for red in (6, 5, 4, 3, 2)]
    assert str(error.value).endswith(f"{', '.join(listed)} and 1 more")


def test_a_palette_takes_the_classes_from_the_row():
    labels = palette_labels({(9, 8, 7): "Road", (1, 2, 3): "Sky"}, ("Sky", "Car", "Road"), "MyNet")
    assert labels.class_ids(np.array([[(1, 2, 3), (9, 8, 7)]], np.uint8)).tolist() == [[0, 2]]
    assert (labels.class_count, labels.scored) == (3, (0, 2))
