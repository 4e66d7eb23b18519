"""The record of a model against the reference in results.json, paired image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from common.benchmark.measure import Measurement
from common.benchmark.records import ModelResult, confusions
from common.benchmark.verdict import verdict
from common.scoring.statistics import Interval, difference_intervals, speedup_interval

WORST_IMAGES = 6  # listed by loss of IoU


@dataclass(frozen=True)
class Difference:
    """A model against the reference; the field names are the keys of the document."""

    tag: str  # kept, lost, gained, unknown: what happened to the accuracy
    verdict: str
    miou: dict[str, float | None]
    iou: dict[str, dict[str, float | None]]
    datasets: dict[str, dict[str, object]]
    speedup: dict[str, float | None]
    size_ratio: float
    memory_ratio: float | None
    different_pixels: float | None
    different_pixels_by_image: list[float]  # empty where the two have different input sizes
    worst_images: list[dict[str, object]]


def difference(
    reference: str, label: str, models: Mapping[str, ModelResult], measurement: Measurement, seed: int
) -> Difference:
    """One model against the reference, paired image by image."""
    first, second = (measurement.recordings[name] for name in (reference, label))
    before, after = (confusions(recording.meters) for recording in (first, second))
    names = measurement.classes.scored_names
    mean, classes = _named_differences(before, after, names, measurement.strata, seed)
    speed = speedup_interval(measurement.by_block(first.seconds), measurement.by_block(second.seconds), seed)
    one, other = models[reference], models[label]
    different = _different_pixels(first.maps, second.maps) if one.input_hw == other.input_hw else []
    size_ratio = other.size_bytes / one.size_bytes
    tag, sentence = verdict(reference, label, one.overall["miou"], other.overall["miou"], mean, speed, size_ratio)
    return Difference(
        tag=tag,
        verdict=sentence,
        miou=asdict(mean),
        iou=classes,
        datasets={
            name: _of_dataset(before[indices], after[indices], names, name, seed)
            for name, indices in measurement.datasets.items()
        },
        speedup=asdict(speed),
        size_ratio=size_ratio,
        memory_ratio=other.model_memory_bytes / one.model_memory_bytes if one.model_memory_bytes else None,
        different_pixels=float(np.mean(different)) if different else None,
        different_pixels_by_image=different,
        worst_images=_worst_images(one, other),
    )


def _of_dataset(
    before: np.ndarray, after: np.ndarray, names: Sequence[str], dataset: str, seed: int
) -> dict[str, object]:
    mean, classes = _named_differences(before, after, names, [dataset] * len(before), seed)
    return {"miou": asdict(mean), "iou": classes}


def _named_differences(
    first: np.ndarray, second: np.ndarray, names: Sequence[str], strata: Sequence[str], seed: int
) -> tuple[Interval, dict[str, dict[str, float | None]]]:
    mean, *classes = difference_intervals(first, second, strata, seed)
    return mean, {name: asdict(interval) for name, interval in zip(names, classes, strict=True)}


def _different_pixels(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> list[float]:
    """The share of pixels of each image with another class; equal maps have equal bytes, so that few are decoded."""
    return [0.0 if np.array_equal(*pair) else _share_of_unequal(*pair) for pair in zip(first, second, strict=True)]


def _share_of_unequal(*encoded: np.ndarray) -> float:
    one, other = (cv2.imdecode(data, cv2.IMREAD_UNCHANGED) for data in encoded)
    return float(np.mean(one != other))


def _worst_images(reference: ModelResult, other: ModelResult) -> list[dict[str, object]]:
    """The images that lose most IoU, the largest loss first; those that lose none are not listed."""
    before, after = (np.array(model.per_image["miou"]) for model in (reference, other))
    drop = before - after
    order = [index for index in np.argsort(-drop, kind="stable")[:WORST_IMAGES].tolist() if drop[index] > 0]
    return [
        {"index": i, "drop": float(drop[i]), "reference_miou": float(before[i]), "miou": float(after[i])} for i in order
    ]
