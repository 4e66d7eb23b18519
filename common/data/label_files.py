"""Labels that are no map of classes, read: a foreground, lanes, depths, angles, objects; docs/data.md shows the files.

Each reader gives what its file says of a shot within the region of interest, before any resize.
"""

import csv
import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.decoding import read_bytes, read_values
from common.data.image_header import read_header
from common.data.labels import LabelMap
from common.data.loading import load_ids, region_of
from common.data.pairs import Sample
from common.data.shots import Shot
from common.system.files import require_ordinary

DEPTH_STEPS = 256  # of a depth PNG in a metre, as KITTI stores them
ANGLES = ("frame", "degrees")  # columns of the file of angles
BOX = "class, centre x, centre y, width, height"  # a line of a file of objects


@dataclass(frozen=True)
class Objects:
    """The objects of an image."""

    hw: tuple[int, int]  # of the region of interest, pixels
    boxes: np.ndarray  # float64 (objects, 5): class, left, top, right, bottom in pixels of the region


def read_label(shot: Shot, task: str, classes: Sequence[str]) -> Any:
    """What the label of a shot says, for a network of this task; `classes` are what it tells apart.

    Returns, by task: segmentation, lanes: uint8 (C, H, W), 1 where it is there, 0 where not, IGNORED: not known.
    depth: float32 (1, H, W), nan where it is not known. steering: float64 (images of the shot,), degrees, nan for one
    of the earlier images that has none. detection: Objects.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another kind or size, or says what cannot be; names the file.
    """
    return READERS[task](shot, classes)


def _foreground(shot: Shot, _: Sequence[str]) -> np.ndarray:
    return load_ids(Sample(shot.dataset, shot.image, _path(shot), _labels(shot)), _image_hw(shot))[None]


def _lanes(shot: Shot, classes: Sequence[str]) -> np.ndarray:
    values = _cut(shot, read_values(_path(shot)))
    if too_large := np.unique(values[values >= 1 << len(classes)]).tolist():
        raise ValueError(
            f"{_path(shot)}: holds {too_large[0]}, where {len(classes)} lanes ({', '.join(classes)}) are bits whose "
            f"sum is at most {(1 << len(classes)) - 1}"
        )
    return np.stack([values >> bit & 1 for bit in range(len(classes))]).astype(np.uint8)


def _depth(shot: Shot, _: Sequence[str]) -> np.ndarray:
    path = _path(shot)
    depth = _cut(shot, _stored_depth(path))
    known = np.isfinite(depth) & (depth != 0)
    if (depth[known] < 0).any():
        raise ValueError(f"{path}: holds the depth {depth[known].min():g}; depths are above 0, and 0 is not known")
    if not known.any():
        raise ValueError(f"{path}: holds no depth at all within the region of interest; 0 is not known")
    return np.where(known, depth, np.nan)[None].astype(np.float32)


def _stored_depth(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".png":
        values = read_values(path)
        if values.dtype != np.uint16:
            raise ValueError(
                f"{path}: 8 bits a value; depths are a grey PNG of 16 bits, {DEPTH_STEPS} steps a metre, or a .npy file"
            )
        return values / np.float32(DEPTH_STEPS)
    require_ordinary(path)
    try:
        depth = np.lib.format.open_memmap(path, mode="r")  # a header that claims more than there is fails
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an array as numpy.save writes it ({str(error):.80})") from error
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise ValueError(f"{path}: {depth.dtype} of the shape {depth.shape}, wanted float32 (height, width)")
    return np.array(depth, np.float32)


def _angles(shot: Shot, _: Sequence[str]) -> np.ndarray:
    angles = angles_of(_path(shot))
    return np.array([angles.get(image.stem, math.nan) for image in shot.images])


def angles_of(path: Path) -> dict[str, float]:
    """The angles in degrees by the stem of their image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV of these columns, a stem is there twice, or an angle is no number; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted a CSV with the columns {','.join(ANGLES)}")
    require_ordinary(path)
    stamp = path.stat()
    return _angles_of(path, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=64)
def _angles_of(path: Path, *_: int) -> dict[str, float]:
    try:
        head, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)) or [[]]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({str(error):.80}); wanted {','.join(ANGLES)}") from error
    if tuple(name.strip() for name in head) != ANGLES:
        raise ValueError(f"{path}: its first line is {','.join(head)!r:.60}, wanted {','.join(ANGLES)}")
    angles: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        degrees = _numbers(row[1:])
        if len(row) != len(ANGLES) or degrees is None:
            raise ValueError(f"{path}, line {number}: {','.join(row)!r:.60}, wanted the stem of an image and degrees")
        if (stem := row[0].strip()) in angles:
            raise ValueError(f"{path}, line {number}: {stem} is there twice; an image has one angle")
        angles[stem] = degrees[0]
    return angles


def _objects(shot: Shot, classes: Sequence[str]) -> Objects:
    path = _path(shot)
    text = bytes(read_bytes(path).data)
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text; wanted lines of {BOX}") from error
    height, width = _image_hw(shot)
    left, top, right, bottom = region_of(shot.dataset, shot.image, width, height)
    boxes = [_box(path, number, line, len(classes)) for number, line in enumerate(lines, 1) if line.strip()]
    shares = np.array(boxes, np.float64).reshape(-1, 5)
    sides = np.array([width, height])
    corners = np.concatenate([(shares[:, 1:3] - shares[:, 3:] / 2), (shares[:, 1:3] + shares[:, 3:] / 2)], axis=1)
    corners = (corners.reshape(-1, 2, 2) * sides).clip((left, top), (right, bottom)) - (left, top)
    there = (corners[:, 1] > corners[:, 0]).all(axis=1)  # an object beside the region is none of it
    found = np.concatenate([shares[:, :1], corners.reshape(-1, 4)], axis=1)[there]
    return Objects((bottom - top, right - left), found)


def _box(path: Path, number: int, line: str, classes: int) -> list[float]:
    words = line.split()
    values = _numbers(words)
    if values is None or len(values) != 5:
        raise ValueError(f"{path}, line {number}: {line.strip()!r:.60}, wanted {BOX}")
    if values[0] not in range(classes):
        raise ValueError(f"{path}, line {number}: class {words[0]}, the network has 0 to {classes - 1}")
    if not all(0 <= value <= 1 for value in values[1:]) or not all(value > 0 for value in values[3:]):
        raise ValueError(
            f"{path}, line {number}: {line.strip()!r:.60}; centre, width and height are shares of the image's, 0 to 1"
        )
    return values


def _numbers(words: Sequence[str]) -> list[float] | None:
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _image_hw(shot: Shot) -> tuple[int, int]:
    header = read_header(read_bytes(shot.image).data, shot.image)
    return header.height, header.width


def _cut(shot: Shot, values: np.ndarray) -> np.ndarray:
    """The region of interest of a map (H, W) in the size of the image."""
    height, width = _image_hw(shot)
    if values.shape != (height, width):
        raise ValueError(
            f"{_path(shot)}: {values.shape[1]}x{values.shape[0]}, but {shot.image.name} is {width}x{height}; "
            "a label has the size of its image"
        )
    left, top, right, bottom = region_of(shot.dataset, shot.image, width, height)
    return values[top:bottom, left:right]


def _path(shot: Shot) -> Path:
    assert shot.label is not None  # of a dataset with labels
    return shot.label


def _labels(shot: Shot) -> LabelMap:
    assert shot.labels is not None  # of masks
    return shot.labels


READERS: dict[str, Callable[[Shot, Sequence[str]], Any]] = {
    "segmentation": _foreground,
    "depth": _depth,
    "lanes": _lanes,
    "steering": _angles,
    "detection": _objects,
}
