"""The cache of prepared samples gives what the files hold, whatever happened to it or to them."""

import multiprocessing
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.cache import entry_path, load_cached
from common.data.loading import load_sample
from common.data.pairs import Sample
from common.system.files import remove_leftovers
from models.scene_seg import PALETTE
from tests.family import LABELS

HW = (32, 64)


def write(path, rgb):
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))


def make_sample(folder, size=(96, 200), suffix=".png", seed=0):
    rng = np.random.default_rng(seed)
    colours = np.array([colour for _, colour, _ in PALETTE], np.uint8)
    sample = Sample("Town", folder / f"image{suffix}", folder / "mask.png", LABELS)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    write(sample.image, smooth)
    write(sample.mask, colours[rng.integers(len(colours), size=size)])
    return sample


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def assert_equal(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_cached_sample_is_the_sample_and_is_not_decoded_again(tmp_path, cache, monkeypatch):
    sample = make_sample(tmp_path)
    expected = load_sample(sample, HW)
    assert_equal(load_cached(cache, sample, HW), expected)
    monkeypatch.setattr("common.data.cache.load_sample", None)
    assert_equal(load_cached(cache, sample, HW), expected)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("changed", ["image", "mask"])
def test_a_changed_source_is_seen_and_replaces_its_entry(tmp_path, cache, changed):
    sample = make_sample(tmp_path)
    old = load_cached(cache, sample, HW)
    path = getattr(sample, changed)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    (tmp_path / "other").mkdir()
    path.write_bytes(getattr(make_sample(tmp_path / "other", seed=1), changed).read_bytes())
    os.utime(path, ns=(times[0], times[1] + 1))  # a nanosecond later
    new = load_cached(cache, sample, HW)
    assert_equal(new, load_sample(sample, HW))
    index = {"image": 0, "mask": 1}[changed]
    assert not np.array_equal(new[index], old[index])
    assert len(list(cache.iterdir())) == 1


def test_sizes_and_ways_of_decoding_have_entries_of_their_own(tmp_path, cache):
    sample = make_sample(tmp_path, suffix=".jpg")
    for hw in (HW, (16, 32)):
        for reduced in (False, True):
            load_cached(cache, sample, hw, reduced=reduced)
            assert_equal(load_cached(cache, sample, hw, reduced=reduced), load_sample(sample, hw, reduced=reduced))
    assert len(list(cache.iterdir())) == 4


def test_another_version_of_the_preparation_makes_the_entry_anew(tmp_path, cache, monkeypatch):
    sample = make_sample(tmp_path)
    load_cached(cache, sample, HW)
    decoded = []
    monkeypatch.setattr("common.data.cache.load_sample", lambda *a, **b: decoded.append(a) or load_sample(*a, **b))
    load_cached(cache, sample, HW)
    assert not decoded
    monkeypatch.setattr("common.data.cache.PREPARATION", -1)
    load_cached(cache, sample, HW)
    assert len(decoded) == 1


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:], lambda c: b""])
def test_a_damaged_entry_is_made_anew(tmp_path, cache, damage):
    sample = make_sample(tmp_path)
    load_cached(cache, sample, HW)
    entry = entry_path(cache, sample, HW, False)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert_equal(load_cached(cache, sample, HW), load_sample(sample, HW))
    assert entry.read_bytes() == whole


def _write_half_and_die(cache, sample):
    def write_bytes(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write_bytes
    load_cached(cache, sample, HW)


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path, cache):
    sample = make_sample(tmp_path)
    writer = multiprocessing.get_context("fork").Process(target=_write_half_and_die, args=(cache, sample))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1
    assert_equal(load_cached(cache, sample, HW), load_sample(sample, HW))
    remove_leftovers(cache)
    assert list(cache.iterdir()) == [entry_path(cache, sample, HW, False)]


@pytest.mark.parametrize("size", [(96, 200), (97, 201)])
def test_reduced_decoding_changes_a_smooth_jpeg_little_and_its_mask_not(tmp_path, size):
    sample = make_sample(tmp_path, size, ".jpg")
    exact, reduced = load_sample(sample, HW), load_sample(sample, HW, reduced=True)
    difference = np.abs(exact[0].astype(int) - reduced[0]).mean()
    assert 0 < difference < 4
    assert_equal(exact[1:], reduced[1:])


def test_reduced_decoding_leaves_small_images_and_png_alone(tmp_path):
    for size, suffix in (((63, 200), ".jpg"), ((96, 200), ".png")):
        sample = make_sample(tmp_path, size, suffix)
        assert_equal(load_sample(sample, HW, reduced=True), load_sample(sample, HW))


def test_an_entry_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path, cache):
    sample = make_sample(tmp_path)
    os.mkfifo(entry_path(cache, sample, HW, False))
    with pytest.raises(ValueError, match=r"\.pair: a pipe, socket or device"):
        load_cached(cache, sample, HW)
