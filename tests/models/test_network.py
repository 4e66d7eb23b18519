"""A row of the registry: what it takes, what it has by default, and what cannot be meant."""

from dataclasses import FrozenInstanceError, replace

import pytest

from models.family import NETWORKS
from models.network import IMAGENET_MEAN, IMAGENET_STD, MOST_CLASSES, Network, check_input_hw

ROW = Network(build=object, input_shape=(3, 36, 52))


def test_two_fields_are_enough_and_the_others_suit_a_network_that_segments_images():
    assert (ROW.task, ROW.channel_order, ROW.size_multiple) == ("segmentation", "RGB", 1)
    assert (ROW.mean, ROW.std) == (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert list(ROW.inputs) == ["input"]
    assert ROW.outputs is None  # known once it has been run
    assert (ROW.classes, ROW.colours, dict(ROW.mask_colours), ROW.published_keys, ROW.width_key) == (
        (),
        (),
        {},
        (),
        None,
    )
    with pytest.raises(FrozenInstanceError):
        ROW.task = "depth"


WRONG = {
    "build is no callable": ({"build": "ESPNet"}, "build is 'ESPNet', wanted a class or function"),
    "two sizes": ({"input_shape": (36, 52)}, r"input_shape is \(36, 52\), wanted \(channels, height, width\)"),
    "a list": ({"input_shape": [3, 36, 52]}, r"input_shape is \[3, 36, 52\], wanted"),
    "a broken size": ({"input_shape": (3, 36.0, 52)}, r"input_shape is \(3, 36.0, 52\), wanted"),
    "no height": ({"input_shape": (3, 0, 52)}, r"input_shape is \(3, 0, 52\), wanted"),
    "true for a size": ({"input_shape": (3, True, 52)}, r"input_shape is \(3, True, 52\), wanted"),
    "another order": ({"channel_order": "bgr"}, "channel_order is 'bgr', wanted RGB or BGR"),
    "no deviation": ({"std": None}, "mean and std: give both, or None for both"),
    "no mean": ({"mean": None}, "mean and std: give both, or None for both"),
    "one number": ({"mean": 0.5}, "mean is 0.5, wanted 3 numbers, one for each channel"),
    "two means": ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\), wanted 3 numbers"),
    "words": ({"std": ("a", "b", "c")}, r"std is \('a', 'b', 'c'\), wanted 3 numbers"),
    "a deviation of 0": ({"std": (1, 0, 1)}, r"std is \(1, 0, 1\), wanted numbers other than 0"),
    "a mean without end": ({"mean": (0, float("inf"), 0)}, "mean is .*inf.*, wanted 3 numbers"),
    "a mean that is none": ({"mean": (0, float("nan"), 0)}, "mean is .*nan.*, wanted 3 numbers"),
    "means of three for six": ({"input_shape": (6, 36, 52)}, "mean is .*, wanted 6 numbers"),
    "an output's name": ({"outputs": {"my logits": ""}}, "outputs is .*my logits.*, wanted a dict of name -> meaning"),
    "a list of outputs": ({"outputs": ("a", "b")}, r"outputs is \('a', 'b'\), wanted a dict"),
    "no output": ({"outputs": {}}, r"outputs is \{\}, wanted a dict"),
    "an input's name": ({"inputs": {"3": ""}}, r"inputs is \{'3': ''\}, wanted a dict"),
    "a list of classes": ({"classes": ["Road"]}, r"classes is \['Road'\], wanted a tuple of different names"),
    "one text": ({"classes": "Road"}, "classes is 'Road', wanted a tuple"),
    "a class twice": ({"classes": ("Road", "Sky", "Road")}, "classes is .*, wanted a tuple of different names"),
    "a class without name": ({"classes": ("Road", " ")}, "classes is .*, wanted a tuple of different names"),
    "a number for a class": ({"classes": ("Road", 1)}, "classes is .*, wanted a tuple of different names"),
    "more classes than 8 bits": ({"classes": tuple(map(str, range(255)))}, "classes is 255, wanted at most 254"),
    "a colour for one of two": (
        {"classes": ("Road", "Sky"), "colours": ((1, 2, 3),)}, "colours: 1 for 2 classes; give one for each, or none",
    ),
    "a step of 0": ({"size_multiple": 0}, "size_multiple is 0, wanted a whole number, or None"),
    "a broken step": ({"size_multiple": 8.0}, "size_multiple is 8.0, wanted a whole number, or None"),
    "a native size that is no multiple": ({"size_multiple": 32}, r"input_shape \(3, 36, 52\): .* size_multiple 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_one_line_that_names_the_field(case):
    fields, message = WRONG[case]
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Network(**{"build": object, "input_shape": (3, 36, 52), **fields})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


WRONG_COLOURS = {
    "of two channels": {"colours": ((1, 2), (3, 4))},
    "beyond 255": {"colours": ((0, 0, 256), (0, 0, 0))},
    "below 0": {"colours": ((0, 0, -1), (0, 0, 0))},
    "words": {"colours": ("red", "blue")},
    "of a mask, beyond 255": {"mask_colours": {(0, 0, 256): "Road"}},
    "of a mask, of a class that is none": {"mask_colours": {(0, 0, 0): "Tree"}},
}


@pytest.mark.parametrize("case", WRONG_COLOURS)
def test_colours_that_are_none_are_refused(case):
    (name,) = WRONG_COLOURS[case]
    with pytest.raises(ValueError, match=f"^{name}"):
        replace(ROW, classes=("Road", "Sky"), **WRONG_COLOURS[case])


def test_as_many_classes_as_a_mask_of_8_bits_holds_beside_the_ignored():
    assert len(replace(ROW, classes=tuple(map(str, range(MOST_CLASSES)))).classes) == 254


@pytest.mark.parametrize("hw", [(1, 1), (37, 53), (1080, 1920)])
def test_a_row_takes_any_input_size(hw):
    check_input_hw(ROW, hw)


@pytest.mark.parametrize("hw", [(0, 52), (36, -52)])
def test_a_size_without_pixels_is_refused(hw):
    with pytest.raises(ValueError, match=f"input size {hw[0]}x{hw[1]}"):
        check_input_hw(ROW, hw)


def test_sizes_that_the_row_does_not_allow():
    check_input_hw(replace(ROW, size_multiple=4), (40, 8))
    with pytest.raises(ValueError, match="input size 38x52: height and width have to be multiples of 4"):
        check_input_hw(replace(ROW, size_multiple=4), (38, 52))
    with pytest.raises(ValueError, match="input size 40x52: this network is bound to 36x52"):
        check_input_hw(replace(ROW, size_multiple=None), (40, 52))
    check_input_hw(replace(ROW, size_multiple=None), (36, 52))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_family_is_rows_of_the_same_kind(name):
    row = NETWORKS[name]
    assert type(row) is Network
    assert set(row.mask_colours.values()) <= set(row.classes)
