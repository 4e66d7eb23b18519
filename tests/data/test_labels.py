"""Labels: what the values of a mask mean, by a dataset's file, by that of the run, or by the network's palette."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.classes import classes_of
from common.data.datasets import SampleSource, find_samples
from common.data.labels import IGNORED, LabelMap, class_weights, read_labels
from common.data.loading import SampleDataset, load_ids
from common.data.pairs import Sample
from models.network import MOST_CLASSES, Network
from tests.family import LABELS, NETWORK, format_of
from tests.pngs import grey_png, palette_png

# ---- class weights ---------------------------------------------------------------------------------------------------


def test_class_weights_by_hand():
    ids = np.zeros((100, 100), np.uint8)
    ids[:10] = 2
    expected = [10000 / (9000 + 5120), 10000 / 5120, 10000 / (1000 + 5120)]
    np.testing.assert_allclose(class_weights(ids, 3), expected, rtol=1e-6)


def test_ignored_pixels_count_for_no_class_weight():
    ids = np.array([[0, 0, 1, IGNORED]], np.uint8)
    weights = class_weights(ids, 4)
    np.testing.assert_allclose(weights, [3 / 5122, 3 / 5121, 3 / 5120, 3 / 5120], rtol=1e-6)
    assert class_weights(np.full((4, 4), IGNORED, np.uint8), 2).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (320, 640), (37, 1001)])
def test_class_weights_take_any_number_of_pixels(shape):
    ids = np.random.default_rng(0).choice([0, 2], shape).astype(np.uint8)
    weights = class_weights(ids, 3)
    assert weights.dtype == np.float32
    counts = [int((ids == class_id).sum()) for class_id in range(3)]
    np.testing.assert_allclose(weights, [ids.size / (count + 5120) for count in counts], rtol=1e-6)


# ---- files of labels -------------------------------------------------------------------------------------------------

NAMES = ("Sky", "Road", "Car", "Tree")


def labels_of(path, document, classes=NAMES) -> LabelMap:
    path.write_text(json.dumps(document))
    return read_labels(path, classes)


def test_values_are_looked_up_and_null_is_ignored(tmp_path):
    labels = labels_of(tmp_path / "l.json", {"values": {"0": "Tree", "7": "Road", "9": "Road", "255": None}})
    mask = np.array([[0, 7, 9, 255]], np.uint8)
    assert labels.class_ids(mask).tolist() == [[3, 1, 1, IGNORED]]
    assert (labels.stored, labels.class_count, labels.scored) == ("values", 4, (1, 3))
    with pytest.raises(
        ValueError, match=rf"^1 values \(1 pixels\) that are not among the 4 of {re.escape(str(tmp_path))}/l.json: 8: 1"
    ):
        labels.class_ids(np.array([[0, 8]], np.uint8))


def test_colours_are_looked_up_and_null_is_ignored(tmp_path):
    colours = {"128,64,128": "Road", " 0 , 0,0": None, "1,2,3": "Car", "3,2,1": "Car"}
    labels = labels_of(tmp_path / "l.json", {"colours": colours})
    mask = np.array([[(128, 64, 128), (0, 0, 0), (1, 2, 3), (3, 2, 1)]], np.uint8)
    assert labels.class_ids(mask).tolist() == [[1, IGNORED, 2, 2]]
    assert labels.scored == (1, 2)
    with pytest.raises(ValueError, match=r"1 colours .* not among the 4 of .*l\.json: \(64, 128, 128\): 1 pixels"):
        labels.class_ids(np.array([[(64, 128, 128)]], np.uint8))


def test_values_of_16_bits(tmp_path):
    labels = labels_of(tmp_path / "l.json", {"values": {"7000": "Road", "65535": None, "24": "Car"}})
    assert labels.class_ids(np.array([[7000, 65535, 24]], np.uint16)).tolist() == [[1, IGNORED, 2]]
    with pytest.raises(ValueError, match=r"1 values .*: 7001: 2 pixels$"):
        labels.class_ids(np.array([[7001, 7001]], np.uint16))


def test_the_last_of_as_many_classes_as_there_may_be_is_a_class(tmp_path):
    names = tuple(f"class {index}" for index in range(MOST_CLASSES))
    labels = labels_of(tmp_path / "l.json", {"values": {str(each): name for each, name in enumerate(names)}}, names)
    assert (labels.class_ids(np.arange(MOST_CLASSES, dtype=np.uint8)[None]) == np.arange(MOST_CLASSES)).all()
    with pytest.raises(ValueError, match=r"2 values \(2 pixels\) .*: 254: 1 pixels, 255: 1 pixels$"):
        labels.class_ids(np.array([[254, 255]], np.uint8))


WRONG = {
    "empty": ("", "not a file of labels"),
    "no JSON": ("values: {0: Road}", "not a file of labels"),
    "not UTF-8": (b'{"values": {"0": "\xff"}}', "not a file of labels"),
    "nested without end": ("[" * 100_000, "not a file of labels"),
    "a list": ('["Sky", "Road"]', "not a file of labels"),
    "nothing in it": ("{}", "not a file of labels"),
    "another word": ('{"value": {"0": "Road"}}', "not a file of labels"),
    "both kinds": ('{"values": {"0": "Road"}, "colours": {"0,0,0": "Sky"}}', "not a file of labels"),
    "a list of names": ('{"values": ["Road", "Sky"]}', "not a file of labels"),
    "no value": ('{"values": {}}', "names no class at all"),
    "all ignored": ('{"values": {"0": null, "1": null}}', "names no class at all"),
    "a negative value": ('{"values": {"-1": "Road"}}', "value '-1', wanted a whole number from 0 to 65535"),
    "a broken value": ('{"values": {"1.5": "Road"}}', "value '1.5', wanted"),
    "a value beyond 16 bits": ('{"values": {"65536": "Road"}}', "value '65536', wanted"),
    "no ASCII digit": ('{"values": {"\u0663": "Road"}}', "wanted a whole number"),
    "a number of 5000 digits": ('{"values": {"%s": "Road"}}' % ("9" * 5000), "5000"),
    "a name for a value": ('{"values": {"Road": "0"}}', "value 'Road', wanted"),
    "two channels": ('{"colours": {"1,2": "Road"}}', "colour '1,2', wanted red,green,blue of 0 to 255 each"),
    "hexadecimal": ('{"colours": {"#804080": "Road"}}', "colour '#804080', wanted"),
    "a channel beyond 255": ('{"colours": {"256,0,0": "Road"}}', "colour '256,0,0', wanted"),
    "values among colours": ('{"colours": {"7": "Road"}}', "colour '7', wanted"),
    "a class that is none": ('{"values": {"0": "Bus"}}', "class 'Bus' is none of the network's: Sky, Road, Car, Tree;"),
    "another case": ('{"values": {"0": "road"}}', "class 'road' is none of the network's"),
    "a number for a class": ('{"values": {"0": 1}}', "class 1 is none of the network's"),
    "a list for a class": ('{"values": {"0": ["Road"]}}', r"class \['Road'\] is none of the network's"),
    "a value twice": ('{"values": {"0": "Road", "0": "Sky"}}', "'0' stands in it twice"),
    "a value in two spellings": ('{"values": {"0": "Road", "00": "Sky"}}', "gives one of its values twice"),
    "a colour in two spellings": ('{"colours": {"1,2,3": "Road", "1, 2,3": "Sky"}}', "gives one of its colours twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line_that_names_them(case, tmp_path):
    content, message = WRONG[case]
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_labels(path, NAMES)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500, line


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file of labels"):
        read_labels(tmp_path / "absent.json", NAMES)


# ---- masks -----------------------------------------------------------------------------------------------------------

VALUES = {"values": {"0": "Sky", "1": "Road", "2": "Car", "3": None}}
STORED = np.random.default_rng(0).integers(0, 4, (8, 12), dtype=np.uint8)
EXPECTED = np.where(STORED == 3, IGNORED, STORED)


def sample_of(folder, mask, labels) -> Sample:
    """A sample with this mask, an array or the bytes of a PNG."""
    content = mask if isinstance(mask, bytes) else cv2.imencode(".png", mask)[1].tobytes()
    (folder / "a.png").write_bytes(content)
    return Sample("Own", folder / "a.png", folder / "a.png", labels)


MASKS = {
    "grey": STORED,
    "16 bits": STORED.astype(np.uint16),
    "indices of a palette of one colour": palette_png(STORED, [(90, 90, 90)] * 256),
    "three equal channels": np.dstack([STORED] * 3),
    "opaque": np.dstack([STORED] * 3 + [np.full_like(STORED, 255)]),
}


@pytest.mark.parametrize("case", MASKS)
def test_values_are_read_however_they_are_stored(case, tmp_path):
    sample = sample_of(tmp_path, MASKS[case], labels_of(tmp_path / "l.json", VALUES))
    ids = load_ids(sample, STORED.shape)
    assert ids.dtype == np.uint8
    assert (ids == EXPECTED).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_values_of_few_bits_are_not_spread(depth, tmp_path):
    labels = labels_of(
        tmp_path / "l.json", {"values": {str(each): "Road" if each % 2 else "Sky" for each in range(16)}}
    )
    stored = np.random.default_rng(0).integers(0, 2**depth, (8, 16), dtype=np.uint8)
    files = {"indices": palette_png(stored, [(90, 90, 90)] * 2**depth, depth), "grey": grey_png(stored, depth)}
    for name, content in files.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        assert (load_ids(Sample("Own", path, path, labels), stored.shape) == stored % 2).all(), name


COLOURED = np.zeros((8, 12, 3), np.uint8)
COLOURED[..., 2] = STORED  # red; OpenCV writes BGR


@pytest.mark.parametrize(
    ("document", "mask", "message"),
    [
        (VALUES, COLOURED, r"a\.png: a mask of colours, where its labels give the classes of values"),
        ({"colours": {"0,0,0": "Sky"}}, STORED, r"a\.png: 3 colours \(\d+ pixels\) .*l\.json: .*grey of 8 bits with"),
        ({"colours": {"0,0,0": "Sky"}}, STORED.astype(np.uint16) * 300, r"a\.png: a mask of 16 bits a value, with the"),
        (VALUES, STORED + 1, r"a\.png: 1 values \(\d+ pixels\) .* among the 4 of .*l\.json: 4: \d+ pixels$"),
        (VALUES, STORED.astype(np.uint16) * 300, r"a\.png: 3 values .*: (300|600|900): \d+ pixels"),
        (VALUES, np.dstack([STORED] * 3 + [STORED]), r"a\.png: a mask with an alpha channel of 8 bits that holds data"),
        (VALUES, STORED[:4], r"a\.png: 12x4, but a\.png is 12x8"),
    ],
    ids=["colours", "grey", "16 bits for colours", "another value", "16 bits for values", "alpha", "another size"],
)
def test_masks_of_another_kind_are_refused(document, mask, message, tmp_path):
    sample = sample_of(tmp_path, mask, labels_of(tmp_path / "l.json", document))
    with pytest.raises(ValueError, match=message) as error:
        load_ids(sample, STORED.shape)
    assert "\n" not in str(error.value)


def test_a_mask_of_another_kind_than_its_labels_in_python(tmp_path):
    labels = labels_of(tmp_path / "l.json", VALUES)
    with pytest.raises(ValueError, match="holds colours, where .*l.json gives the class of values"):
        labels.class_ids(COLOURED)
    with pytest.raises(ValueError, match="holds one channel of values, where the palette of SceneSeg gives .* colours"):
        LABELS.class_ids(STORED)


# ---- datasets --------------------------------------------------------------------------------------------------------


def write_town(root, name, mask, labels=None) -> Path:
    """A dataset of one image, with a labels.json of its own where `labels` is given; its folder."""
    folder = root / name / name
    for part, rgb in (("images", np.zeros((*STORED.shape, 3), np.uint8)), ("gt_masks", mask)):
        (folder / part).mkdir(parents=True)
        assert cv2.imwrite(str(folder / part / "0.png"), rgb)
    if labels is not None:
        (folder / "labels.json").write_text(json.dumps(labels))
    return folder


COLOURS_FILE = {"colours": {"0,0,0": "Tree", "1,0,0": "Road", "2,0,0": "Car", "3,0,0": None}}


def train(root, *names, classes=NAMES, **options):
    return find_samples(SampleSource(root, "my_network:NET", classes, names=names, **options), "train")


def test_two_datasets_of_one_run_store_their_labels_differently(tmp_path):
    write_town(tmp_path, "Grey", STORED, VALUES)
    write_town(tmp_path, "Paint", COLOURED, COLOURS_FILE)
    samples = train(tmp_path, "Grey", "Paint")
    network = Network(build=object, input_shape=(3, *STORED.shape), classes=NAMES)
    assert classes_of(network, samples).scored == (0, 1, 2, 3)
    assert classes_of(network, samples[:1]).scored == (0, 1, 2)
    grey, paint = SampleDataset(samples, format_of(STORED.shape))
    assert (grey.mask.numpy() == EXPECTED).all()
    assert (paint.mask.numpy() == np.array([3, 1, 2, IGNORED])[STORED]).all()
    known = STORED != 3
    counts = np.bincount(STORED[known], minlength=4)
    np.testing.assert_allclose(grey.class_weights, known.sum() / (counts + 5120), rtol=1e-6)


def test_one_file_serves_for_all_datasets(tmp_path):
    for name in ("A", "B"):
        write_town(tmp_path, name, STORED)
    labels_of(tmp_path / "labels.json", VALUES)
    samples = train(tmp_path, "A", "B", labels=tmp_path / "labels.json")
    assert [sample.labels.source for sample in samples] == [str(tmp_path / "labels.json")] * 2
    assert all((load_ids(sample, STORED.shape) == EXPECTED).all() for sample in samples)


def test_a_datasets_own_file_may_say_the_same_as_that_of_the_run_and_nothing_else(tmp_path):
    folder = write_town(tmp_path, "A", STORED, VALUES)
    labels_of(tmp_path / "labels.json", VALUES)
    assert len(train(tmp_path, "A", labels=tmp_path / "labels.json")) == 1
    (folder / "labels.json").write_text(json.dumps({"values": {**VALUES["values"], "3": "Tree"}}))
    with pytest.raises(
        ValueError, match=r"^--labels .*labels\.json: .*/A/A/labels\.json says otherwise; leave the flag"
    ):
        train(tmp_path, "A", labels=tmp_path / "labels.json")


def test_labels_that_are_missing_or_cannot_be_meant_are_told_before_any_mask_is_read(tmp_path):
    folder = write_town(tmp_path, "A", STORED)
    with pytest.raises(ValueError, match=r"/A/A: no labels\.json, and my_network:NET has no palette .* --labels FILE"):
        train(tmp_path, "A")
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file of labels"):
        train(tmp_path, "A", labels=tmp_path / "absent.json")
    with pytest.raises(ValueError, match="my_network:NET has no classes that masks could name; give `classes`"):
        train(tmp_path, "A", classes=())
    (folder / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match=r"/A/A/labels\.json: not a file of labels; wanted "):
        train(tmp_path, "A")


@pytest.mark.parametrize("given", [False, True], ids=["alone", "beside --labels"])
@pytest.mark.parametrize("kind", ["a folder, not a file", "a link to nothing"])
def test_a_labels_file_that_is_none_is_an_error_and_not_passed_over(kind, given, tmp_path):
    folder = write_town(tmp_path, "A", STORED)
    labels_of(tmp_path / "labels.json", VALUES)
    own = folder / "labels.json"
    own.mkdir() if "folder" in kind else own.symlink_to(tmp_path / "gone.json")
    options = {"labels": tmp_path / "labels.json"} if given else {"mask_colours": (((0, 0, 0), "Road"),)}
    with pytest.raises(FileNotFoundError, match=rf"/A/A/labels\.json: {kind} of labels$"):
        train(tmp_path, "A", **options)


def test_a_file_goes_before_the_palette_of_the_network(tmp_path):
    write_town(tmp_path, "A", STORED, {"values": {"0": "Road", "1": "Road", "2": "Foreground", "3": None}})
    (sample,) = find_samples(SampleSource.of("SceneSeg", NETWORK, tmp_path, names=["A"]), "train")
    assert (load_ids(sample, STORED.shape) == np.array([2, 2, 1, IGNORED])[STORED]).all()
    assert sample == replace(sample) and hash(sample)  # what caches and bad samples are keyed by
