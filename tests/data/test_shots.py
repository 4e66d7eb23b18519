"""Images without masks: what is found below folders, how it is split, and what a network gets of it."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.data.bad_samples import usable_shots
from common.data.cache import load_cached_shot, shot_loader
from common.data.shots import (
    AugmentedShots,
    Shot,
    ShotDataset,
    ShotFormat,
    consecutive,
    find_images,
    find_shots,
    letterbox,
    split_shots,
)
from common.data.transforms import ImageFormat

FORMAT = ImageFormat((32, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def write(path, value=None, size=(48, 96)):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3)
    rng = np.random.default_rng([*path.name.encode()])
    assert cv2.imwrite(str(path), rng.integers(0, 256, shape, np.uint8) if value is None else np.full(shape, value))


@pytest.fixture
def drives(tmp_path):
    """Two folders of different depth, with a mask and a hidden file among the images."""
    for name in ("a/1.png", "a/2.jpg", "a/deep/er/3.png", "b/4.JPEG"):
        write(tmp_path / name)
    write(tmp_path / "a" / "gt_masks" / "1.png")
    write(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_are_found_however_deep_and_masks_are_none(drives):
    names = [path.relative_to(drives).as_posix() for path in find_images(drives)]
    assert names == ["a/1.png", "a/2.jpg", "a/deep/er/3.png", "b/4.JPEG"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(drives / "c")
    (drives / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no .png, .jpg, .jpeg file in it"):
        find_images(drives / "empty")


def test_folders_name_their_images_and_an_image_is_taken_once(drives):
    assert [shot.dataset for shot in find_shots([drives / "a", drives / "b"])] == ["a", "a", "a", "b"]
    with pytest.raises(ValueError, match=rf"--images {drives / 'b'}: .*4.JPEG is below {drives}, too"):
        find_shots([drives, drives / "b"])


def test_the_image_before_is_of_the_same_folder():
    images = [Path(name) for name in ("a/1", "a/2", "a/3", "b/1", "b/2")]
    found = [tuple(map(str, each)) for each in consecutive(images, 2)]
    assert found == [("a/1", "a/1"), ("a/1", "a/2"), ("a/2", "a/3"), ("b/1", "b/1"), ("b/1", "b/2")]
    assert [tuple(map(str, each)) for each in consecutive(images[:3], 3)][-1] == ("a/1", "a/2", "a/3")
    assert consecutive(images, 1) == [(image,) for image in images]


def shots(dataset, count):
    return [Shot(dataset, (Path(f"{dataset}/{index:02}.png"),)) for index in range(count)]


def test_every_tenth_image_of_a_folder_is_validation():
    training, validation = split_shots([*shots("a", 23), *shots("b", 4), *shots("c", 1)])
    assert [shot.image.as_posix() for shot in validation] == ["a/09.png", "a/19.png", "b/03.png"]
    assert len(training) == 25
    with pytest.raises(ValueError, match="at least two"):
        split_shots([*shots("a", 1), *shots("b", 1)])


def test_a_tensor_holds_the_images_in_the_order_of_time(tmp_path):
    write(tmp_path / "1.png", 51)
    write(tmp_path / "2.png", 255)
    dataset = ShotDataset(find_shots([tmp_path], 2), ShotFormat(FORMAT, 2))
    first, second = dataset[0], dataset[1]
    assert first.shape == (6, 32, 64)
    torch.testing.assert_close(first, torch.full((6, 32, 64), 0.2))
    torch.testing.assert_close(second[:3], first[:3])
    torch.testing.assert_close(second[3:], torch.ones(3, 32, 64))


def test_all_images_of_a_shot_are_changed_alike(tmp_path):
    for name in ("1.png", "2.png"):
        write(tmp_path / name, 100)
    image = cv2.imread(str(tmp_path / "1.png"))
    image[:, :20] = (0, 0, 255)  # tells a flip
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(tmp_path / name), image)
    shot_format = ShotFormat(FORMAT, 2)
    dataset = AugmentedShots(find_shots([tmp_path], 2), shot_format, 0.4, 3, shot_format.load)
    for index in range(12):
        (pair,) = dataset[index, 1]
        assert (pair[:3] - pair[3:]).abs().mean() < 0.05  # noise is drawn for each
        assert torch.equal(pair, dataset[index, 1][0])
    (plain,) = AugmentedShots(dataset.shots, shot_format, 0.0, 3, shot_format.load)[0, 1]
    assert torch.equal(plain, ShotDataset(dataset.shots, shot_format)[1])


def test_a_letterbox_keeps_the_aspect_ratio():
    boxed = letterbox(np.full((10, 20, 3), 200, np.uint8), (64, 64))
    assert (boxed[16:48] == 200).all()
    assert (boxed[:16] == 114).all()
    assert (boxed[48:] == 114).all()


@pytest.mark.parametrize("letterboxed", [False, True])
def test_a_cached_shot_is_the_shot(letterboxed, tmp_path, caplog):
    for name in ("drive/1.png", "drive/2.png"):
        write(tmp_path / name)
    shot, shot_format = find_shots([tmp_path / "drive"], 2)[1], ShotFormat(FORMAT, 2, letterboxed)
    expected, cache = shot_format.load(shot), tmp_path / "cache"
    cache.mkdir()
    for _ in range(2):
        assert np.array_equal(load_cached_shot(cache, shot_format, shot), expected)
    (entry,) = cache.iterdir()
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_cached_shot(cache, shot_format, shot), expected)
    assert "damaged cache entry" in caplog.text
    write(tmp_path / "drive" / "1.png", 9)
    assert not np.array_equal(load_cached_shot(cache, shot_format, shot), expected)
    assert (load_cached_shot(cache, shot_format, shot)[1] == expected[1]).all()


def test_large_jpegs_are_decoded_at_half_their_size_where_asked_for(tmp_path):
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8), (192, 96))
    cv2.imwrite(str(tmp_path / "1.jpg"), smooth)
    (shot,) = find_shots([tmp_path])
    whole, reduced = (shot_loader(ShotFormat(FORMAT), None, reduced=each)(shot).astype(int) for each in (False, True))
    assert whole.shape == reduced.shape == (1, 32, 64, 3)
    assert 0 < np.abs(whole - reduced).mean() < 3


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    write(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    bad = []
    found = find_shots([tmp_path])
    assert usable_shots(found, bad, 0) == found[:1]
    assert [Path(each.path).name for each in bad] == ["2.png"]
    with pytest.raises(ValueError, match="--skip_bad: no image of 1 is left"):
        usable_shots(found[1:], [], 0)
