"""Labels: what a dataset's masks store, and which of the network's classes each stored value means."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IGNORED = 255  # the class id of pixels that are neither trained nor scored
UNKNOWN = 254  # of stored values that no row of the labels has
LABELS_FILE = "labels.json"  # in a dataset's folder, beside images/ and gt_masks/
LARGEST_VALUE = 65535  # of a mask of 16 bits
CLASS_WEIGHT_OFFSET = 5120  # pixels; bounds the weight of a class that an image hardly shows
LISTED = 5  # stored values that an error message spells out
COLOUR = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*")
WANTED = '{"values": {"0": "car", "255": null}} or {"colours": {"0,0,142": "car", "0,0,0": null}}'


@dataclass(frozen=True)
class LabelMap:
    """From what a mask stores to class ids; hashable, since the caches of samples and tables are keyed by it."""

    stored: str  # "values": one channel of ids; "colours": RGB
    to_class: tuple[tuple[int, int], ...]  # value, or red | green << 8 | blue << 16 -> class id, or IGNORED
    class_count: int
    source: str  # the file, or the network whose palette it is, for error messages

    def class_ids(self, mask: np.ndarray) -> np.ndarray:
        """The class of every pixel: uint8 or uint16 (H, W) of values, or uint8 (H, W, 3) of colours -> uint8 (H, W).

        Raises:
            ValueError: the mask is of the other kind, or holds what the labels do not name; with its pixel counts.
        """
        if (mask.ndim == 3) != (self.stored == "colours"):
            found = "colours" if mask.ndim == 3 else "one channel of values"
            raise ValueError(f"holds {found}, where {self.source} gives the class of {self.stored}")
        packed = _packed(mask) if mask.ndim == 3 else mask
        ids = _table(self.stored, self.to_class)[packed]
        if (unknown := ids == UNKNOWN).any():
            raise ValueError(self._unknown(packed[unknown]))
        return ids

    @property
    def scored(self) -> tuple[int, ...]:
        """The classes that a pixel can be labelled as, in the network's order."""
        return tuple(sorted({each for _, each in self.to_class} - {IGNORED}))

    def _unknown(self, packed: np.ndarray) -> str:
        values, counts = np.unique(packed, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:LISTED]
        named = [_value_name(self.stored, int(value)) for value in values[order]]
        listed = [f"{name}: {count} pixels" for name, count in zip(named, counts[order].tolist(), strict=True)]
        more = f" and {len(values) - len(listed)} more" if len(values) > len(listed) else ""
        return (
            f"{len(values)} {self.stored} ({len(packed)} pixels) that are not among the {len(self.to_class)} of "
            f"{self.source}: {', '.join(listed)}{more}"
        )


def _packed(rgb: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> red | green << 8 | blue << 16."""
    padded = np.zeros((*rgb.shape[:2], 4), np.uint8)
    cv2.mixChannels([rgb], [padded], [0, 0, 1, 1, 2, 2])  # a third of the time of shifting and adding the channels
    return padded.view("<u4")[..., 0]


@functools.cache
def _table(stored: str, to_class: tuple[tuple[int, int], ...]) -> np.ndarray:
    size = 1 << 24 if stored == "colours" else LARGEST_VALUE + 1  # 16 MB for every RGB colour: one gather per mask
    table = np.full(size, UNKNOWN, np.uint8)
    for value, class_id in to_class:
        table[value] = class_id
    return table


def _value_name(stored: str, value: int) -> str:
    return str(value) if stored == "values" else f"({value & 255}, {value >> 8 & 255}, {value >> 16})"


def palette_labels(colours: Mapping[tuple[int, int, int], str], classes: Sequence[str], network: str) -> LabelMap:
    """The labels of masks in the palette of a network's own family: the colours that `models.Network` names."""
    to_class = tuple((_pack(colour), classes.index(name)) for colour, name in colours.items())
    return LabelMap("colours", to_class, len(classes), f"the palette of {network}")


def read_labels(path: Path, classes: Sequence[str]) -> LabelMap:
    """The labels of a JSON file, for a network of these classes; null is ignored, several values may be one class.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form, or names a class that the network does not have.
    """
    if not path.is_file():
        found = (
            "a folder, not a file" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no such file"
        )
        raise FileNotFoundError(f"{path}: {found} of labels")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: not a file of labels ({str(error):.80}); wanted {WANTED}") from error
    stored = next(iter(document), None) if isinstance(document, dict) and len(document) == 1 else None
    if stored not in ("values", "colours") or not isinstance(document[stored], dict):
        raise ValueError(f"{path}: not a file of labels; wanted {WANTED}")
    parse = _parsed_value if stored == "values" else _parsed_colour
    try:
        to_class = tuple((parse(key), _class_id(name, classes)) for key, name in document[stored].items())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(dict(to_class)) != len(to_class):
        raise ValueError(f"{path}: gives one of its {stored} twice")
    if all(class_id == IGNORED for _, class_id in to_class):
        raise ValueError(f"{path}: names no class at all; wanted {WANTED}")
    return LabelMap(stored, to_class, len(classes), str(path))


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twins := {key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1}:
        raise ValueError(f"{min(twins)!r} stands in it twice")
    return dict(pairs)


def _parsed_value(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text) <= LARGEST_VALUE:
        raise ValueError(f"value {text!r:.40}, wanted a whole number from 0 to {LARGEST_VALUE}")
    return int(text)


def _parsed_colour(text: str) -> int:
    match = COLOUR.fullmatch(text)
    if not match or max(map(int, match.groups())) > 255:
        raise ValueError(f"colour {text!r:.40}, wanted red,green,blue of 0 to 255 each")
    return _pack(tuple(map(int, match.groups())))


def _pack(colour: tuple[int, ...]) -> int:
    red, green, blue = colour
    return red | green << 8 | blue << 16


def _class_id(name: object, classes: Sequence[str]) -> int:
    if name is None:
        return IGNORED
    if name not in classes:
        raise ValueError(f"class {name!r:.60} is none of the network's: {', '.join(classes)}; null ignores a value")
    return list(classes).index(str(name))


def class_weights(ids: np.ndarray, class_count: int) -> np.ndarray:
    """The weights of an image's classes in the loss, float32 (C,): pixels / (pixels of the class + 5120).

    Ignored pixels count for none.
    """
    counts = np.array([np.count_nonzero(ids == each) for each in range(class_count)])  # bincount: ten times slower
    pixels = ids.size - np.count_nonzero(ids == IGNORED)
    return (pixels / (counts + CLASS_WEIGHT_OFFSET)).astype(np.float32)
