"""Pictures: Original | GT | Prediction, with the classes blended over the image."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.datasets import Sample, SceneSegDataset, spread
from common.files import atomic_path
from common.labels import CLASSES, DISPLAY_COLOURS, colourise
from common.predictors import Predictor
from common.transforms import denormalise

OPACITY = 0.6  # of the class colours over the image
BAR = 26  # height of the title bar and of the legend, pixels
GAP = 4  # between the panels, pixels
SMALLEST_PANEL = 240  # pixels wide; holds the longest title
WHITE, DARK = (255, 255, 255), (32, 32, 32)


def overlay(rgb: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Blend the colours of the classes (H, W) over an image, uint8 RGB (H, W, 3)."""
    return cv2.addWeighted(colourise(ids), OPACITY, rgb, 1 - OPACITY, 0)


def strip(rgb: np.ndarray, panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Original | one panel for each (title, class ids) side by side, with the legend of the classes below.

    Shapes: uint8 RGB (H, W, 3) and class ids (H, W) -> uint8 RGB. Small images are enlarged: text does not shrink.
    """
    scale = math.ceil(SMALLEST_PANEL / rgb.shape[1])
    pictures = [("Original", rgb), *((title, overlay(rgb, ids)) for title, ids in panels)]
    height, width = scale * rgb.shape[0], scale * rgb.shape[1]
    canvas = np.full((height + 2 * BAR, len(pictures) * (width + GAP) - GAP, 3), DARK, np.uint8)
    for index, (title, picture) in enumerate(pictures):
        left = index * (width + GAP)
        canvas[BAR : BAR + height, left : left + width] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        _write(canvas, title, (left + 6, BAR - 8))
    left = 6
    for name, colour in zip(CLASSES, DISPLAY_COLOURS.tolist(), strict=True):
        bottom = BAR + height + BAR - 7
        cv2.rectangle(canvas, (left, bottom - 12), (left + 18, bottom), colour, thickness=-1)
        left = _write(canvas, name, (left + 26, bottom)) + 22
    return canvas


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int]) -> int:
    """Write white text and return where it ends."""
    face, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    cv2.putText(canvas, text, origin, face, size, WHITE, 1, cv2.LINE_AA)
    return origin[0] + cv2.getTextSize(text, face, size, 1)[0][0]


def save_png(path: Path, rgb: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) as PNG, whole or not at all."""
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_pictures(
    folder: Path,
    label: str,
    predict: Predictor,
    samples: Sequence[Sample],
    input_hw: tuple[int, int],
    per_dataset: int,
) -> list[Path]:
    """Write Original | GT | Prediction of some samples of each dataset to `folder`/pictures and return the files."""
    chosen, written = spread(samples, per_dataset), []
    (folder / "pictures").mkdir(exist_ok=True)
    dataset = SceneSegDataset(chosen, input_hw)
    for index, sample in enumerate(chosen):
        example = dataset[index]
        rgb = denormalise(example.image)
        predicted = predict(example.image[None]).argmax(dim=1)[0].numpy()
        panels = [("GT", example.mask.numpy()), (f"Prediction: {label}", predicted)]
        written.append(folder / "pictures" / f"{sample.dataset}_{sample.image.stem}_{label.replace(' ', '_')}.png")
        save_png(written[-1], strip(rgb, panels))
    return written
