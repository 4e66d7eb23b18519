"""Datasets with labels of every task, for the tests of scores."""

from pathlib import Path

import cv2
import numpy as np

BOXES = ((0, 4.0, 3.0, 12.0, 9.0), (1, 10.0, 2.0, 18.0, 8.0))  # class, left, top, right, bottom in an image of 12x20


def write_small_drive(folder: Path, count: int, hw: tuple[int, int], seed: int = 0) -> None:
    """Images of noise in blocks, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 6, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{index:03}.png"), cv2.resize(coarse, hw[::-1]))


def write_labels(folder: Path, task: str, count: int, hw: tuple[int, int], seed: int = 0) -> None:
    """Labels of the images 000, 001, ... in the folder of a dataset."""
    rng = np.random.default_rng(seed)
    if task == "steering":
        rows = [f"{index:03},{rng.normal(0, 8):.2f}\n" for index in range(count)]
        (folder / "steering.csv").write_text("frame,degrees\n" + "".join(rows))
        return
    place = {"segmentation": "gt_masks", "lanes": "gt_lanes", "depth": "gt_depth", "detection": "gt_boxes"}[task]
    (folder / place).mkdir()
    for index in range(count):
        path, top = folder / place / f"{index:03}", int(rng.integers(0, hw[0] // 2))
        mask = np.zeros(hw, np.uint8)
        mask[top : top + hw[0] // 2, hw[1] // 4 : hw[1] // 2] = 1
        if task == "segmentation":
            cv2.imwrite(f"{path}.png", 255 * mask)
        elif task == "lanes":
            cv2.imwrite(f"{path}.png", mask | mask[:, ::-1] << 1)
        elif task == "depth":
            np.save(f"{path}.npy", np.linspace(50, 2, hw[0], dtype=np.float32)[:, None] * (1 + 0.2 * mask))
        else:
            lines = [_line(box, hw) for box in BOXES[: 1 + index % 2]]
            path.with_suffix(".txt").write_text("".join(lines))


def _line(box: tuple[float, ...], hw: tuple[int, int]) -> str:
    kind, left, top, right, bottom = box
    sides = [(left + right) / 40, (top + bottom) / 24, (right - left) / 20, (bottom - top) / 12]
    return " ".join([str(kind), *(f"{value:.6f}" for value in sides)]) + "\n"


def iou_of(said: np.ndarray, there: np.ndarray) -> float:
    """Of two masks, by counting."""
    return (said & there).sum() / (said | there).sum()
