import cv2
import numpy as np

from common.data.drawing import BAR, DISAGREEMENT, GAP, OPACITY, SMALLEST_PANEL, disagreement, overlay, save_png, strip
from tests.family import CLASSES

COLOURS = np.array(CLASSES.colours)


def test_a_strip_holds_its_panels_side_by_side():
    rgb, road, sky = np.full((40, 240, 3), 50, np.uint8), np.full((40, 240), 2), np.full((40, 240), 0)
    picture = strip(rgb, [("GT", road), ("Prediction", sky)], CLASSES)
    middle = picture[BAR + 20]
    assert (middle[0] == 50).all()
    assert (middle[picture.shape[1] // 2] == overlay(rgb, road, CLASSES)[0, 0]).all()
    assert (middle[-1] == overlay(rgb, sky, CLASSES)[0, 0]).all()


def test_an_overlay_mixes_image_and_class_colour():
    rgb, ids = np.full((2, 2, 3), 100, np.uint8), np.array([[0, 1], [2, 2]])
    mixed = overlay(rgb, ids, CLASSES)
    low, high = np.minimum(rgb, COLOURS[ids]), np.maximum(rgb, COLOURS[ids])
    assert ((mixed >= low) & (mixed <= high)).all()
    assert len(np.unique(mixed.reshape(-1, 3), axis=0)) == 3


def test_png_keeps_the_colours(tmp_path):
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[..., 0] = 200
    save_png(tmp_path / "red.png", rgb)
    assert (cv2.imread(str(tmp_path / "red.png"))[..., ::-1] == rgb).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disagreement_says_who_is_right():
    rgb = np.full((1, 5, 3), 100, np.uint8)
    target, reference, candidate = (np.array([ids]) for ids in ([0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 0, 0, 2]))
    picture = disagreement(rgb, target, reference, candidate)[0].tolist()
    grey = picture[0]
    assert picture == [grey, *(list(DISAGREEMENT[key]) for key in ("lost", "gained", "both wrong")), grey]
    assert min(grey) == max(grey) > 150


def test_an_overlay_is_the_weighted_mean_of_class_colour_and_image():
    rng = np.random.default_rng(0)
    rgb, ids = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.integers(0, 3, (20, 30))
    expected = OPACITY * COLOURS[ids].astype(float) + (1 - OPACITY) * rgb
    assert np.abs(overlay(rgb, ids, CLASSES) - expected).max() <= 0.51


def test_a_strip_has_titles_above_and_the_legend_below():
    rgb, ids = np.zeros((40, 250, 3), np.uint8), np.zeros((40, 250), int)
    picture = strip(rgb, [("GT", ids), ("Prediction", ids)], CLASSES)
    assert picture.shape == (40 + 2 * BAR, 3 * 250 + 2 * GAP, 3)
    for left in (0, 250 + GAP, 2 * (250 + GAP)):
        assert (picture[:BAR, left : left + 250] > 200).any()
    legend = {tuple(colour) for colour in picture[-BAR:].reshape(-1, 3).tolist()}
    assert legend >= {tuple(colour) for colour in COLOURS.tolist()}


def test_a_small_image_is_enlarged_so_that_titles_and_legend_fit():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    scale = SMALLEST_PANEL // 4
    picture = strip(rgb, [], CLASSES)
    panel = picture[BAR : BAR + 2 * scale]
    assert picture.shape == (2 * scale + 3 * BAR, SMALLEST_PANEL, 3)  # a legend of two lines
    assert (panel[scale // 2 :: scale, scale // 2 :: scale] == rgb).all()
