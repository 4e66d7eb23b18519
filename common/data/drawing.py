"""Drawing: the classes blended over an image, panels side by side, and where two predictions differ."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.data.classes import Classes
from common.data.datasets import Sample
from common.system.files import atomic_path, short_stem

OPACITY = 0.6  # of the class colours over the image
BAR = 26  # height of the title bar and of the legend, pixels
GAP = 4  # between the panels, pixels
SMALLEST_PANEL = 240  # pixels wide; holds the longest title
FACE, TEXT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
WHITE, DARK = (255, 255, 255), (32, 32, 32)
# of the pixels on which a model and the reference differ: only the reference is right, only the model, or neither
DISAGREEMENT = {"lost": (220, 38, 38), "gained": (22, 150, 72), "both wrong": (234, 160, 0)}


def overlay(rgb: np.ndarray, ids: np.ndarray, classes: Classes) -> np.ndarray:
    """Blend the colours of the classes (H, W) over an image, uint8 RGB (H, W, 3)."""
    return cv2.addWeighted(classes.colourise(ids), OPACITY, rgb, 1 - OPACITY, 0)


def strip(rgb: np.ndarray, panels: Sequence[tuple[str, np.ndarray]], classes: Classes) -> np.ndarray:
    """Original | one panel for each (title, class ids) side by side, with the legend of the classes below.

    Shapes: uint8 RGB (H, W, 3) and class ids (H, W) -> uint8 RGB. Small images are enlarged: text does not shrink.
    """
    canvas = beside([("Original", rgb), *((title, overlay(rgb, ids, classes)) for title, ids in panels)])
    return np.vstack([canvas, _legend(classes, canvas.shape[1])])


def beside(pictures: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures of one size, uint8 RGB (H, W, 3), side by side below their titles."""
    rgb = pictures[0][1]
    scale = math.ceil(SMALLEST_PANEL / rgb.shape[1])
    height, width = scale * rgb.shape[0], scale * rgb.shape[1]
    canvas = np.full((height + BAR, len(pictures) * (width + GAP) - GAP, 3), DARK, np.uint8)
    for index, (title, picture) in enumerate(pictures):
        left = index * (width + GAP)
        canvas[BAR : BAR + height, left : left + width] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        _write(canvas, title, (left + 6, BAR - 8))
    return canvas


def _legend(classes: Classes, width: int) -> np.ndarray:
    """A swatch and the name of each class, in as many lines as they take."""
    places, left, line = [], 6, 0
    for name in classes.names:
        needed = 26 + _text_width(name)
        if left > 6 and left + needed > width:
            left, line = 6, line + 1
        places.append((left, line))
        left += needed + 22
    legend = np.full(((line + 1) * BAR, width, 3), DARK, np.uint8)
    for (left, line), name, colour in zip(places, classes.names, classes.colours, strict=True):
        bottom = line * BAR + BAR - 7
        cv2.rectangle(legend, (left, bottom - 12), (left + 18, bottom), colour, thickness=-1)
        _write(legend, name, (left + 26, bottom))
    return legend


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int]) -> None:
    """Write white text."""
    cv2.putText(canvas, text, origin, FACE, TEXT_SIZE, WHITE, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, FACE, TEXT_SIZE, 1)[0][0]


def save_png(path: Path, rgb: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) as PNG, whole or not at all."""
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def disagreement(rgb: np.ndarray, target: np.ndarray, reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Where two predictions differ, and who is right, in DISAGREEMENT's colours over a pale grey image.

    Shapes: uint8 RGB (H, W, 3) and class ids (H, W) each -> uint8 RGB (H, W, 3).
    """
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(grey, 0.4, np.full_like(grey, 255), 0.6, 0)
    different = reference != candidate
    picture[different & (candidate != target) & (reference != target)] = DISAGREEMENT["both wrong"]
    picture[different & (candidate == target)] = DISAGREEMENT["gained"]
    picture[different & (reference == target)] = DISAGREEMENT["lost"]
    return picture


def save_prediction(
    folder: Path,
    sample: Sample,
    label: str,
    rgb: np.ndarray,
    target: np.ndarray,
    predicted: np.ndarray,
    classes: Classes,
) -> Path:
    """Write Original | GT | Prediction of one sample to `folder`/pictures and return the file.

    Shapes: uint8 RGB (H, W, 3), class ids (H, W) of the truth and of the model `label`.
    """
    (folder / "pictures").mkdir(exist_ok=True)
    path = folder / "pictures" / f"{sample.dataset}_{short_stem(sample.image.stem)}_{file_name(label)}.png"
    save_png(path, strip(rgb, [("GT", target), (f"Prediction: {label}", predicted)], classes))
    return path


def file_name(label: str) -> str:
    """A label as part of a file name: letters, digits, dots and dashes stay."""
    return short_stem(re.sub(r"[^\w.-]+", "_", label))
