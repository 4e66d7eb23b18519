"""The pictures of a report, from what was measured: nothing is predicted a second time."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.benchmark.measure import Measurement
from common.data.datasets import spread
from common.data.drawing import disagreement, overlay, save_prediction
from common.data.loading import load_sample

SHOWN_WIDTH = 480  # pixels of a picture in the page; files beside it have all of theirs
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Panel:
    """One picture: Original, GT, Prediction (of `model`) or Disagreement (of `model` and the reference)."""

    kind: str
    model: str | None
    rgb: np.ndarray  # uint8 (H, W, 3)


@dataclass(frozen=True)
class Scene:
    """All pictures of one image of the benchmark."""

    index: int  # of the image in the document
    panels: tuple[Panel, ...]


def scene(measurement: Measurement, index: int) -> Scene:
    """Original, GT, every model's prediction, and every model's disagreement with the first, if there is any."""
    reference, *others = measurement.candidates
    rgb, target, _ = load_sample(measurement.samples[index], measurement.candidates[reference].input_hw)
    classes = measurement.classes
    maps = {label: _class_map(measurement, label, index, target.shape) for label in measurement.candidates}
    panels = [Panel("Original", None, rgb), Panel("GT", None, overlay(rgb, target, classes))]
    panels += [Panel("Prediction", label, overlay(rgb, ids, classes)) for label, ids in maps.items()]
    panels += [
        Panel("Disagreement", label, disagreement(rgb, target, maps[reference], maps[label]))
        for label in others
        if not np.array_equal(maps[reference], maps[label])
    ]
    return Scene(index, tuple(panels))


def _class_map(measurement: Measurement, label: str, index: int, hw: tuple[int, int]) -> np.ndarray:
    """A model with another input size is shown in the size of the first."""
    return cv2.resize(measurement.recordings[label].class_map(index), hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def chosen_indices(measurement: Measurement, per_dataset: int) -> list[int]:
    """Some images of each dataset, evenly spaced."""
    chosen = set(spread(measurement.samples, per_dataset))
    return [index for index, sample in enumerate(measurement.samples) if sample in chosen]


def save_pictures(folder: Path, measurement: Measurement, indices: Sequence[int]) -> list[Path]:
    """Write Original | GT | Prediction of every model to `folder`/pictures and return the files."""
    written = []
    for label, candidate in measurement.candidates.items():
        for index in indices:
            sample = measurement.samples[index]
            rgb, target, _ = load_sample(sample, candidate.input_hw)
            predicted = measurement.recordings[label].class_map(index)
            written.append(save_prediction(folder, sample, label, rgb, target, predicted, measurement.classes))
    return written


def data_uri(rgb: np.ndarray) -> str:
    """A picture as JPEG within the page, at most SHOWN_WIDTH wide."""
    if rgb.shape[1] > SHOWN_WIDTH:
        size = (SHOWN_WIDTH, round(rgb.shape[0] * SHOWN_WIDTH / rgb.shape[1]))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
