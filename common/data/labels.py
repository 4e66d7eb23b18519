"""Labels: the palette of the masks, its classes, and the colours of the pictures."""

import cv2
import numpy as np

from models.scene_seg import CLASSES

BACKGROUND, FOREGROUND, ROAD = range(len(CLASSES))

# name, RGB in the masks, class id
PALETTE = (
    ("sky", (61, 184, 255), BACKGROUND),
    ("background objects", (61, 93, 255), BACKGROUND),
    ("road-edge delimiter", (216, 255, 61), BACKGROUND),
    ("unlabelled", (0, 0, 0), BACKGROUND),
    ("vulnerable living", (255, 61, 61), FOREGROUND),
    ("small vehicle", (255, 190, 61), FOREGROUND),
    ("large vehicle", (255, 116, 61), FOREGROUND),
    ("other foreground", (255, 28, 145), FOREGROUND),
    ("road", (0, 255, 220), ROAD),
)
DISPLAY_COLOURS = np.array([(61, 93, 255), (255, 28, 145), (0, 255, 220)], np.uint8)  # of each class, RGB
CLASS_WEIGHT_OFFSET = 5120  # pixels; bounds the weight of a class that an image hardly shows
UNKNOWN = 255
LISTED_COLOURS = 5  # that an error message spells out


def _look_up_table() -> np.ndarray:
    table = np.full(1 << 24, UNKNOWN, np.uint8)  # 16 MB for every RGB colour: one gather per mask
    for _, (red, green, blue), class_id in PALETTE:
        table[red | green << 8 | blue << 16] = class_id
    return table


_TABLE = _look_up_table()


def class_ids(rgb: np.ndarray) -> np.ndarray:
    """The class of every pixel of a mask: uint8 (H, W, 3) in the palette's colours -> uint8 (H, W).

    Raises:
        ValueError: colours that are not in the palette, the most frequent ones with their pixel counts.
    """
    padded = np.zeros((*rgb.shape[:2], 4), np.uint8)
    cv2.mixChannels([rgb], [padded], [0, 0, 1, 1, 2, 2])  # a third of the time of shifting and adding the channels
    packed = padded.view("<u4")[..., 0]  # red | green << 8 | blue << 16
    ids = _TABLE[packed]
    if (unknown := ids == UNKNOWN).any():
        raise ValueError(_unknown_colours(packed[unknown]))
    return ids


def _unknown_colours(packed: np.ndarray) -> str:
    colours, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:LISTED_COLOURS]
    listed = [
        f"({colour & 255}, {colour >> 8 & 255}, {colour >> 16}): {count} pixels"
        for colour, count in zip(colours[order].tolist(), counts[order].tolist(), strict=True)
    ]
    more = f" and {len(colours) - len(listed)} more colours" if len(colours) > len(listed) else ""
    return (
        f"{len(colours)} colours ({len(packed)} pixels) that are not among the {len(PALETTE)} of the palette in "
        f"common/data/labels.py: {', '.join(listed)}{more}"
    )


def colourise(ids: np.ndarray) -> np.ndarray:
    """Class ids (H, W) -> uint8 RGB (H, W, 3) in the pictures' colours."""
    return DISPLAY_COLOURS[ids]


def class_weights(ids: np.ndarray) -> np.ndarray:
    """The weights of an image's classes in the loss, float32 (3,): pixels / (pixels of the class + 5120)."""
    counts = np.array(
        [np.count_nonzero(ids == class_id) for class_id in range(len(CLASSES))]
    )  # bincount: ten times slower
    return (ids.size / (counts + CLASS_WEIGHT_OFFSET)).astype(np.float32)
