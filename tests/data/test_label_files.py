"""Labels of a foreground, lanes, depths, angles and objects: found, split, read, and refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.bad_samples import usable_labelled_shots
from common.data.label_files import angles_of, read_label
from common.data.labelled_shots import find_labelled_shots, labelled_source
from common.data.labels import IGNORED
from common.data.shots import Shot, ShotFormat, find_images, letterbox_place
from common.data.transforms import ImageFormat
from models.family import NETWORKS
from tests.labelled import write_labels, write_small_drive

HW = (12, 20)
LANES = ("left", "right", "other")
TASKS = {"segmentation": "DomainSeg", "depth": "Scene3D", "lanes": "EgoLanes", "steering": "AutoSteer"}
TASKS |= {"detection": "AutoSpeed"}


@pytest.fixture
def shot(tmp_path):
    """A shot with an image of HW; tests set its label."""
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((*HW, 3), np.uint8))
    return Shot("Town", (tmp_path / "1.png",))


def png(path, values):
    assert cv2.imwrite(str(path), values)
    return path


def text(path, content):
    path.write_text(content)
    return path


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_each_bit_of_a_mask_is_a_lane(shot, tmp_path):
    stored = np.zeros(HW, np.uint8)
    stored[0, :4] = (1, 2, 4, 5)  # the last: the first lane and the third
    lanes = read_label(replace(shot, label=png(tmp_path / "l.png", stored)), "lanes", LANES)
    assert lanes.shape == (3, *HW)
    assert lanes[:, 0, :4].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert not lanes[:, 1:].any()


def test_a_depth_png_is_of_256_steps_a_metre_and_0_is_not_known(shot, tmp_path):
    stored = np.full(HW, 512, np.uint16)
    stored[0, :2] = (0, 640)
    depth = read_label(replace(shot, label=png(tmp_path / "d.png", stored)), "depth", ())
    assert (depth.shape, depth.dtype) == ((1, *HW), np.float32)
    assert depth[0, 0, :3].tolist()[1:] == [2.5, 2.0]
    assert np.isnan(depth[0, 0, 0])


def test_a_depth_array_is_as_it_is(shot, tmp_path):
    stored = np.full(HW, 7.5, np.float32)
    stored[0, :3] = (0, np.nan, np.inf)
    np.save(tmp_path / "d.npy", stored)
    depth = read_label(replace(shot, label=tmp_path / "d.npy"), "depth", ())
    assert np.isnan(depth[0, 0]).tolist() == [True] * 3 + [False] * (HW[1] - 3)
    assert (depth[0, 1:] == 7.5).all()


def test_angles_stand_beside_the_stems_of_their_images(tmp_path):
    path = text(tmp_path / "steering.csv", "\ufeffframe,degrees\n001,-2.5\n\n002 , 4\n")
    assert angles_of(path) == {"001": -2.5, "002": 4.0}
    shot = Shot("Town", (tmp_path / "000.png", tmp_path / "002.png"), label=path)
    angles = read_label(shot, "steering", ())
    assert np.isnan(angles[0]) and angles[1] == 4
    text(path, "frame,degrees\n001,3\n")
    assert angles_of(path) == {"001": 3.0}  # not what stood there before


def test_objects_are_shares_of_the_image_and_become_pixels(shot, tmp_path):
    label = text(tmp_path / "b.txt", "1 0.5 0.5 0.5 0.5\n\n0 0.05 0.5 0.2 1\n")
    found = read_label(replace(shot, label=label), "detection", LANES)
    assert found.hw == HW
    # the second reaches over the left edge by a pixel
    np.testing.assert_allclose(found.boxes, [[1, 5, 3, 15, 9], [0, 0, 0, 3, 12]])
    assert read_label(replace(shot, label=text(tmp_path / "b.txt", "")), "detection", LANES).boxes.shape == (0, 5)


def test_a_foreground_is_255_or_what_labels_name(tmp_path):
    stored = np.zeros(HW, np.uint8)
    stored[0, :3] = (255, 7, 255)
    write_small_drive(tmp_path / "Town" / "Town" / "images", 10, HW)
    for index in range(10):
        (tmp_path / "Town/Town/gt_masks").mkdir(exist_ok=True)
        png(tmp_path / f"Town/Town/gt_masks/{index:03}.png", stored)
    network = NETWORKS["DomainSeg"]
    (shot,) = find_labelled_shots(labelled_source("DomainSeg", network, tmp_path, names=["Town"]), network, "val")
    with pytest.raises(
        ValueError, match=r"009.png: 1 values \(1 pixels\) .* a mask without labels.json .*: 7: 1 pixels"
    ):
        read_label(shot, "segmentation", network.classes)
    named = {"values": {"0": "background", "255": None, "7": "road work objects"}}
    text(tmp_path / "Town/Town/labels.json", json.dumps(named))
    (shot,) = find_labelled_shots(labelled_source("DomainSeg", network, tmp_path, names=["Town"]), network, "val")
    assert read_label(shot, "segmentation", network.classes)[0, 0, :4].tolist() == [IGNORED, 1, IGNORED, 0]


def test_image_and_label_are_cut_to_the_region_of_a_known_dataset(tmp_path):
    image = np.zeros((100, 40, 3), np.uint8)
    image[70:] = 255  # below the region of comma10k, whose last column is out of it, too
    cv2.imwrite(str(tmp_path / "1.png"), image)
    depth = np.ones((100, 40), np.float32)
    depth[70:], depth[:, 39] = 5, 5
    np.save(tmp_path / "1.npy", depth)
    shot = Shot("comma10k", (tmp_path / "1.png",), label=tmp_path / "1.npy")
    read = read_label(shot, "depth", ())
    assert read.shape == (1, 70, 39) and (read == 1).all()
    shot_format = ShotFormat(ImageFormat.of(NETWORKS["Scene3D"], (32, 64)))
    assert not shot_format.load(shot).any()
    assert shot_format.load(replace(shot, label=None)).any()  # of a folder of images nothing is cut
    boxes = text(tmp_path / "1.txt", "0 0.5 0.65 1 0.1\n0 0.5 0.9 0.5 0.1\n")  # the second lies below the region
    found = read_label(replace(shot, label=boxes), "detection", LANES)
    np.testing.assert_allclose(found.boxes, [[0, 0, 60, 39, 70]])
    assert found.hw == (70, 39)


def test_the_place_in_a_letterbox():
    assert letterbox_place((10, 20), (64, 64)) == (0, 16, 64, 32)
    assert letterbox_place((20, 10), (64, 64)) == (16, 0, 32, 64)


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_paired_and_split_as_masks(task, tmp_path):
    folder = tmp_path / "Town" / "Town"
    write_small_drive(folder / "images", 20, HW)
    write_labels(folder, task, 20, HW)
    name = TASKS[task]
    network = NETWORKS[name]
    source = labelled_source(name, network, tmp_path, names=["Town"], image_bits=8)
    training, validation = (find_labelled_shots(source, network, split) for split in ("train", "val"))
    assert [shot.image.name for shot in validation] == ["009.png", "019.png"]
    assert len(training) == 18
    assert {len(shot.images) for shot in training} == {network.images}
    assert [image.stem for image in validation[1].images][-network.images :] == ["018", "019"][-network.images :]
    assert validation[0].image_bits == 8
    read_label(validation[0], task, network.classes)
    assert len(find_images(tmp_path)) == 20  # labels are no images
    label = validation[0].label
    if task == "steering":
        label.write_text(label.read_text().replace("009,", "o,"))
        message = "2 stems have no partner: 009, o; images/X.jpg needs a row X in steering.csv"
    else:
        label.rename(label.with_stem("o"))
        message = rf"2 files have no partner: images/009.png, {label.parent.name}/o{label.suffix}; "
        message += rf"images/X.jpg needs {label.parent.name}/X\.png" if label.suffix == ".png" else "images/X.jpg needs"
    with pytest.raises(ValueError, match=message):
        find_labelled_shots(source, network, "val")
    bad = []
    found = usable_labelled_shots(replace(source, skip_bad=True), network, "val", bad)
    assert [shot.image.name for shot in found] == ["010.png"]  # 19 are left, so that another is the tenth
    assert len(bad) == 2 and all("no partner" in each.reason for each in bad)


def test_a_label_that_cannot_be_read_is_left_out_and_named(tmp_path):
    folder, network = tmp_path / "Town" / "Town", NETWORKS["Scene3D"]
    write_small_drive(folder / "images", 20, HW)
    write_labels(folder, "depth", 20, HW)
    (folder / "gt_depth" / "009.npy").write_bytes(b"no array")
    bad = []
    source = labelled_source("Scene3D", network, tmp_path, names=["Town"], skip_bad=True)
    assert [shot.image.stem for shot in usable_labelled_shots(source, network, "val", bad)] == ["019"]
    assert "009.npy: not an array as numpy.save writes it" in bad[0].reason


def test_what_has_no_labels_is_told(tmp_path):
    with pytest.raises(ValueError, match="own:NET: there are no labels for its task 'driving'; .*--images"):
        labelled_source("own:NET", replace(NETWORKS["Scene3D"], task="driving"), tmp_path)
    with pytest.raises(ValueError, match="--labels: says what masks mean, and EgoLanes has labels of lanes"):
        labelled_source("EgoLanes", NETWORKS["EgoLanes"], tmp_path, labels=Path("labels.json"))
    (tmp_path / "Town" / "Town" / "images").mkdir(parents=True)
    write_small_drive(tmp_path / "Town" / "Town" / "images", 10, HW)
    for task, name in TASKS.items():
        source = labelled_source(name, NETWORKS[name], tmp_path, names=["Town"])
        with pytest.raises(FileNotFoundError, match="no such f.*wanted|no such folder; expected ROOT/NAME/NAME/images"):
            find_labelled_shots(source, NETWORKS[name], "val")
        with pytest.raises(FileNotFoundError, match=f"none of ACDC.*{'steering.csv' if task == 'steering' else 'gt_'}"):
            find_labelled_shots(replace(source, names=None), NETWORKS[name], "val")


# ---- what is refused -------------------------------------------------------------------------------------------------

SMALL = np.ones((3, 4), np.uint8)
REFUSED = {
    "lanes of another size": ("lanes", "1.png", SMALL, "4x3, but 1.png is 20x12"),
    "lanes of more bits": ("lanes", "1.png", np.full(HW, 8, np.uint8), "holds 8, where 3 lanes .*at most 7"),
    "lanes in colours": (
        "lanes",
        "1.png",
        np.dstack([np.eye(*HW, dtype=np.uint8)] + [np.ones(HW, np.uint8)] * 2),
        "colours",
    ),
    "depth of 8 bits": ("depth", "1.png", np.ones(HW, np.uint8), "8 bits a value; depths are a grey PNG of 16 bits"),
    "depth of another size": ("depth", "1.png", np.ones((3, 4), np.uint16), "4x3, but 1.png is 20x12"),
    "no depth at all": ("depth", "1.png", np.zeros(HW, np.uint16), "no depth at all"),
    "a depth below 0": ("depth", "1.npy", np.full(HW, -1, np.float32), "holds the depth -1"),
    "depths of whole numbers": ("depth", "1.npy", np.ones(HW, int), r"int64 of the shape \(12, 20\), wanted float32"),
    "depths of three axes": ("depth", "1.npy", np.ones((1, *HW), np.float32), r"wanted float32 \(height, width\)"),
    "depths as objects": ("depth", "1.npy", np.full(HW, None), "not an array as numpy.save writes it"),
    "other columns": ("steering", "1.csv", "image,angle\n1,2\n", "first line is 'image,angle', wanted frame,degrees"),
    "no columns": ("steering", "1.csv", "", "first line is '', wanted frame,degrees"),
    "an angle that is none": ("steering", "1.csv", "frame,degrees\n1,left\n", "line 2: '1,left', wanted the stem"),
    "an infinite angle": ("steering", "1.csv", "frame,degrees\n1,inf\n", "line 2: '1,inf', wanted the stem"),
    "no angle": ("steering", "1.csv", "frame,degrees\n1\n", "line 2: '1', wanted the stem"),
    "two angles": ("steering", "1.csv", "frame,degrees\n1,2\n1,3\n", "line 3: 1 is there twice"),
    "bytes for angles": ("steering", "1.csv", b"\xff\xfe\x00", "not a CSV file"),
    "four numbers": ("detection", "1.txt", "0 0.5 0.5 0.1\n", "line 1: '0 0.5 0.5 0.1', wanted class, centre x"),
    "a word": ("detection", "1.txt", "car 0.5 0.5 0.1 0.1\n", "line 1: 'car 0.5 0.5 0.1 0.1', wanted class"),
    "another class": ("detection", "1.txt", "\n3 0.5 0.5 0.1 0.1\n", "line 2: class 3, the network has 0 to 2"),
    "half a class": ("detection", "1.txt", "0.5 0.5 0.5 0.1 0.1\n", "line 1: class 0.5"),
    "pixels": ("detection", "1.txt", "0 10 6 4 4\n", "shares of the image's, 0 to 1"),
    "no width": ("detection", "1.txt", "0 0.5 0.5 0 0.1\n", "shares of the image's, 0 to 1"),
    "bytes for objects": ("detection", "1.txt", b"\xff\xfe", "not text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_label_that_says_what_cannot_be_is_refused(case, shot, tmp_path):
    task, name, content, message = REFUSED[case]
    path = tmp_path / "labels" / name
    path.parent.mkdir()
    if path.suffix == ".png":
        png(path, content)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        read_label(replace(shot, label=path), task, LANES)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_an_array_that_claims_more_than_it_holds_takes_no_memory(shot, tmp_path):
    path = tmp_path / "1.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999, 9999999), }"
    padded = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(960))
    with pytest.raises(ValueError, match="not an array as numpy.save writes it"):
        read_label(replace(shot, label=path), "depth", ())
