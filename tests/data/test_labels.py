import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.labels import PALETTE, class_ids, class_weights, colourise


def test_every_colour_of_the_palette_has_its_class():
    mask = np.array([[colour for _, colour, _ in PALETTE]], np.uint8)
    assert class_ids(mask).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2]]


def test_unknown_colours_are_counted():
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[0, :3] = (1, 2, 3)
    mask[1, 0] = (61, 184, 254)
    with pytest.raises(ValueError, match=r"2 colours .*: \(1, 2, 3\): 3 pixels, \(61, 184, 254\): 1 pixels$"):
        class_ids(mask)


def test_many_unknown_colours_are_summed_up():
    mask = np.arange(1, 25, dtype=np.uint8).reshape(2, 4, 3)
    with pytest.raises(ValueError, match="8 colours .* and 3 more colours"):
        class_ids(mask)


def test_class_weights_by_hand():
    ids = np.zeros((100, 100), np.uint8)
    ids[:10] = 2
    np.testing.assert_allclose(
        class_weights(ids), [10000 / (9000 + 5120), 10000 / 5120, 10000 / (1000 + 5120)], rtol=1e-6
    )


def test_pictures_use_the_display_colours():
    assert colourise(np.array([[0, 1, 2]])).tolist() == [[[61, 93, 255], [255, 28, 145], [0, 255, 220]]]


COLOURS = [colour for _, colour, _ in PALETTE]
near_colours = st.sampled_from(COLOURS).flatmap(
    lambda colour: st.tuples(*(st.integers(max(v - 1, 0), min(v + 1, 255)) for v in colour))
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(near_colours, st.permutations([255, 61, 0]).map(tuple), st.tuples(*[st.integers(0, 255)] * 3)))
def test_only_the_exact_colours_are_accepted(colour):
    mask = np.array([[colour]], np.uint8)
    if colour in COLOURS:
        assert class_ids(mask)[0, 0] == PALETTE[COLOURS.index(colour)][2]
    else:
        with pytest.raises(ValueError, match="1 colours"):
            class_ids(mask)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99))
def test_views_of_a_mask_are_looked_up_where_they_are(seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(PALETTE), (12, 17))
    mask, ids = np.array(COLOURS, np.uint8)[rows], np.array([class_id for *_, class_id in PALETTE])[rows]
    top, left = rng.integers(0, 8, 2)
    for view in (np.s_[top:, left:], np.s_[::-1], np.s_[:, ::-2], np.s_[top : top + 1, left : left + 1]):
        assert (class_ids(mask[view]) == ids[view]).all()


def test_the_most_frequent_unknown_colours_come_first_with_the_total():
    mask = np.zeros((1, 21, 3), np.uint8)
    mask[0, :, 0] = np.repeat(np.arange(1, 7), np.arange(1, 7))
    with pytest.raises(ValueError) as error:
        class_ids(mask)
    assert "6 colours (21 pixels)" in str(error.value)
    listed = [f"({red}, 0, 0): {red} pixels" for red in (6, 5, 4, 3, 2)]
    assert str(error.value).endswith(f"{', '.join(listed)} and 1 more colours")


def test_class_weights_take_any_number_of_pixels():
    for shape in ((1, 1), (320, 640), (37, 1001)):
        ids = np.random.default_rng(0).choice([0, 2], shape).astype(np.uint8)
        counts = [int((ids == class_id).sum()) for class_id in range(3)]
        weights = class_weights(ids)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, [ids.size / (count + 5120) for count in counts], rtol=1e-6)
