"""A user's folder as the tests of label-free work take it: a small network of a kind, its weights, and a drive."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

# a map of classes and one of a single value, from one image
TWO_MAPS = """
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        first = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(*first, nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.area = nn.ConvTranspose2d(8, 2, 2, 2)
        self.depth = nn.ConvTranspose2d(8, 1, 2, 2)

    def forward(self, image):
        x = self.drop(self.body(image))
        return self.area(x), self.depth(x)


NET = Network(
    build=Net,
    input_shape=(3, 32, 64),
    size_multiple=2,
    outputs={"area": "logits of off and on the road", "depth": "metres"},
    output_kinds={"depth": "values"},
)
"""

# three numbers from two images, by one backbone
TWO_IMAGES = """
import torch
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        first = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.backbone = nn.Sequential(*first, nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.mix = nn.Sequential(nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.distance, self.curvature, self.flag = (nn.Linear(8, 1) for _ in range(3))

    def forward(self, previous, current):
        x = self.mix(torch.cat([self.backbone(previous), self.backbone(current)], dim=1))
        return self.distance(x), self.curvature(x), self.flag(x)


NET = Network(
    build=Net,
    input_shape=(3, 32, 64),
    inputs={"previous": "RGB image before", "current": "RGB image"},
    outputs={"distance": "metres", "curvature": "1/m", "flag": "logit of a vehicle ahead"},
    output_kinds={"flag": "logits"},
    task="driving",
)
"""


def write_drive(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (48, 96)) -> None:
    """Images of rectangles before a sky and a road that change slowly, as those of a drive do."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    height, width = size
    for index in range(count):
        image = np.zeros((height, width, 3), np.uint8)
        image[: height // 2] = 120 + rng.integers(0, 120, 3)
        image[height // 2 :] = rng.integers(20, 120, 3)
        side = int(rng.integers(5, height // 2))
        left = (7 * index) % (width - side)
        image[height // 2 - side // 2 :][:side, left : left + side] = rng.integers(0, 256, 3)
        noisy = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{index:03}.png"), noisy)


def write_labelled(folder: Path) -> None:
    """A dataset of 10 images for a network without names of classes, whose lower halves are of class 1; labels.json."""
    write_drive(folder / "images", 10)
    (folder / "gt_masks").mkdir()
    for image in (folder / "images").iterdir():
        mask = np.zeros((48, 96), np.uint8)
        mask[24:] = 1
        assert cv2.imwrite(str(folder / "gt_masks" / image.name), mask)
    Path("labels.json").write_text(json.dumps({"values": {"0": "class 0", "1": "class 1"}}))


@contextmanager
def own_folder(folder: Path, module: str, source: str) -> Iterator[Path]:
    """The current folder, with the network `module`:NET and its random weights `weights.pth` in it."""
    (folder / f"{module}.py").write_text(source)
    before, path = Path.cwd(), [*sys.path]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.manual_seed(1)
    model = importlib.import_module(module).Net()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    torch.save(model.state_dict(), "weights.pth")
    try:
        yield folder
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop(module, None)
