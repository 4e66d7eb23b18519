import cv2
import numpy as np
import pytest

from common.data.loading import load_sample
from examples.make_scenes import SCENE_SETS, draw_at, write_dataset
from examples.scenes import make_scene
from models.scene_seg import PALETTE
from tests.family import found


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_scenes_repeat_bit_for_bit_and_fewer_are_a_prefix(tmp_path):
    for folder, count in (("a", 4), ("b", 4), ("c", 2)):
        write_dataset(tmp_path / folder, "Town", count, seed=7, size=(48, 80))
    a, b, c = (files(tmp_path / folder) for folder in "abc")
    assert a == b
    assert len(c) == 4
    assert c.items() <= a.items()


def test_seeds_and_indices_give_other_scenes(tmp_path):
    for seed in (0, 1):
        write_dataset(tmp_path / str(seed), "Town", 2, seed=seed, size=(48, 80))
    images = [data for seed in "01" for path, data in files(tmp_path / seed).items() if "images" in path.parts]
    assert len(set(images)) == 4


def test_masks_hold_the_palette_and_all_of_it():
    seen = set()
    for name, look in SCENE_SETS.items():
        for seed in range(6):
            _, mask = draw_at(np.random.default_rng((seed, len(name))), look, 200, 360)
            seen |= {tuple(colour) for colour in np.unique(mask.reshape(-1, 3), axis=0).tolist()}
    assert seen == {colour for _, colour, _ in PALETTE}


@pytest.mark.parametrize("name", sorted(SCENE_SETS))
def test_every_dataset_passes_the_loader_with_road_in_its_region(tmp_path, name):
    write_dataset(tmp_path, name, 10, seed=0)
    image, ids, weights = load_sample(found(tmp_path, [name], "val")[0], (64, 128))
    assert (ids == 2).mean() > 0.05
    assert image.shape == (64, 128, 3)
    assert (weights > 0).all()


def test_both_image_formats_occur():
    assert {look.suffix for look in SCENE_SETS.values()} == {".jpg", ".png"}


def test_image_and_mask_are_of_one_scene():
    """The sky of the mask is brighter in the image than the rest, by day, on average."""
    differences = []
    for seed in range(8):
        rgb, mask = make_scene(np.random.default_rng(seed), 96, 160)
        sky = (mask == (61, 184, 255)).all(axis=2)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        differences.append(grey[sky].mean() - grey[~sky].mean())
    assert np.mean(differences) > 20


def test_a_folder_with_files_is_not_overwritten(tmp_path):
    write_dataset(tmp_path, "Town", 1, seed=0, size=(48, 80))
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_dataset(tmp_path, "Town", 1, seed=0, size=(48, 80))
    write_dataset(tmp_path, "Town", 2, seed=0, size=(48, 80), overwrite=True)
    assert len(found(tmp_path, ["Town"], "train")) == 2
