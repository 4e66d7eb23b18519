"""The files of labels that come with the examples."""

from pathlib import Path

import pytest

from common.data.labels import IGNORED, read_labels

READY = Path(__file__).resolve().parents[2] / "examples" / "labels"
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IN_ORDER = {"cityscapes_train_ids": CITYSCAPES, "camvid": CAMVID, "pascal_voc": VOC}


def test_every_ready_file_is_tested():
    assert {path.stem for path in READY.iterdir()} == {*IN_ORDER, "cityscapes_label_ids"}


@pytest.mark.parametrize("name", IN_ORDER)
def test_ready_files_give_the_classes_in_their_usual_order(name):
    classes = IN_ORDER[name]
    labels = read_labels(READY / f"{name}.json", classes)
    known = {value: class_id for value, class_id in labels.to_class if class_id != IGNORED}
    assert known == {value: value for value in range(len(classes))}
    assert {value for value, class_id in labels.to_class if class_id == IGNORED} == {11 if name == "camvid" else 255}


def test_the_label_ids_of_cityscapes_become_its_train_ids():
    """By the table of its authors: label id -> train id."""
    labels = dict(read_labels(READY / "cityscapes_label_ids.json", CITYSCAPES).to_class)
    trained = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    assert labels == {value: IGNORED for value in range(34)} | {value: each for each, value in enumerate(trained)}
