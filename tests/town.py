"""A dataset of scenes of rectangles with masks of ids, and what these mean: a user's own data, for the scripts."""

import json
from pathlib import Path

import cv2
import numpy as np

HW = (90, 131)
NAME = "Town"
CLASSES = ["sky", "road", "car", "tree", "sign"]
# what the masks store -> class; no value is a tree or a sign
LABELS = {"0": "sky", "1": "road", "7": "road", "2": "car", "255": None}
COLOURS = {
    0: (230, 160, 90),
    1: (60, 70, 80),
    7: (110, 110, 100),
    2: (20, 30, 200),
    255: (0, 0, 0),
}  # BGR, of the scenes
DATA = ["--datasets", NAME, "--workers", 0]  # flags of the scripts


def write_town(root: Path) -> None:
    """20 images below `root`, with their masks and labels.json."""
    town = root / NAME / NAME
    for part in ("images", "gt_masks"):
        (town / part).mkdir(parents=True)
    for index in range(20):
        rng = np.random.default_rng(index)
        mask = np.zeros(HW, np.uint8)
        mask[50:] = rng.choice([1, 7])
        for value in (2, 255):
            top, left = rng.integers(10, 60), rng.integers(0, 100)
            mask[top : top + 20, left : left + 30] = value
        image = np.zeros((*HW, 3))
        for value, colour in COLOURS.items():
            image[mask == value] = colour
        noisy = (image + rng.normal(0, 12, image.shape)).round().clip(0, 255).astype(np.uint8)
        assert cv2.imwrite(str(town / "images" / f"{index:02}.png"), noisy)
        assert cv2.imwrite(str(town / "gt_masks" / f"{index:02}.png"), mask)
    (town / "labels.json").write_text(json.dumps({"values": LABELS}))
