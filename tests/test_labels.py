import numpy as np
import pytest

from common.labels import PALETTE, class_ids, class_weights, colourise


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
