"""The results document of the benchmarks: one record per model, their differences from the first, and the machine.

Every report is made from this document alone. Its keys are described in docs/results.md.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common import STARTED
from common.benchmark.measure import Measurement, Timed, Timing
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.settings import BenchmarkSettings, CommandLine
from common.benchmark.verdict import verdict
from common.data.classes import Classes
from common.scoring.latency import latency
from common.scoring.metrics import IoUMeter, iou_of_targets, mean_of_known
from common.scoring.statistics import Interval, difference_intervals, iou_intervals, speedup_interval
from common.system.environment import environment
from common.system.files import sha256
from common.system.settings import flat

SCHEMA = 3
WORST_IMAGES = 6  # listed by loss of IoU
Document = dict[str, Any]  # results.json in memory


@dataclass(frozen=True)
class ModelResult:
    """One benchmarked model; the field names are the keys of the document."""

    path: str
    size_bytes: int  # of the file, and of those beside it that its weights are in
    sha256: str  # of their content, in that order: which model this was
    precision: str  # fp32, fp16, int8
    provider: str  # ONNX Runtime's execution provider, or PyTorch and its device
    threads: int
    input_hw: tuple[int, int]
    latency_ms: dict[str, float]
    end_to_end_ms: dict[str, float]
    cold_start_ms: dict[str, float]
    warm_up: dict[str, object]
    block_medians_ms: list[float]
    block_spread: float
    throughput_per_second: float
    by_threads: dict[str, dict[str, Any]]
    peak_memory_bytes: int
    model_memory_bytes: int
    device_memory_bytes: int | None
    overall: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    per_image: dict[str, list]


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


def results_document(
    title: str,
    measurement: Measurement,
    settings: BenchmarkSettings,
    notes: Sequence[str] = (),
    sensitivity: Sensitivity | None = None,
    asked: CommandLine | None = None,
) -> Document:
    """The whole of results.json, as JSON takes it; the first model is the reference of all differences."""
    labels, seed, asked = list(measurement.candidates), settings.seed, asked or CommandLine()
    models = {label: model_result(label, measurement, settings.threads, seed) for label in labels}
    reference, *others = labels
    return {
        **heading(title, measurement, settings, notes, asked),
        "classes": dict(zip(measurement.classes.names, map(list, measurement.classes.colours), strict=True)),
        "reference": reference,
        "models": {label: plain(asdict(result)) for label, result in models.items()},
        "differences": {
            label: plain(asdict(difference(reference, label, models, measurement, seed))) for label in others
        },
        **({"sensitivity": plain(asdict(sensitivity))} if sensitivity else {}),
        "environment": environment(),
    }


def _durations(measurement: Timed) -> dict[str, float]:
    """Seconds of the process so far, and how many of them went into timed inference and preparing images."""
    times = (sum(_flat(recording.seconds)) for recording in measurement.recordings.values())
    total = time.perf_counter() - STARTED
    return {"total": total, "inference": sum(times), "preparation": measurement.preparation_seconds}


def model_result(label: str, measurement: Measurement, threads: int, seed: int) -> ModelResult:
    """The record of one model."""
    recording, groups = measurement.recordings[label], groups_of(measurement)
    return ModelResult(
        **cost(label, measurement, threads),
        overall=scores(recording.meters, measurement.classes, _strata(measurement), seed),
        datasets={
            name: {
                **scores([recording.meters[i] for i in indices], measurement.classes, [name] * len(indices), seed),
                "latency_ms": asdict(latency(_flat([recording.seconds[i] for i in indices]))),
            }
            for name, indices in groups.items()
        },
        per_image={
            **times_by_image(recording),
            "miou": mean_of_known(iou_of_targets(confusions(recording.meters))).tolist(),
            "confusion": [meter.confusion.flatten().tolist() for meter in recording.meters],
        },
    )


def cost(label: str, measurement: Timed, threads: int) -> dict[str, Any]:
    """What a model is and takes, whatever its outputs are judged by: the fields that all records of models share."""
    candidate, recording = measurement.candidates[label], measurement.recordings[label]
    memory, timing = measurement.memory[label], latency(_flat(recording.seconds))
    medians = [1000 * float(np.median(block)) for block in by_block(recording.seconds, measurement)]
    return {
        "path": str(candidate.path),
        "size_bytes": candidate.size_bytes,
        "sha256": sha256(*candidate.files),
        "precision": candidate.precision,
        "provider": recording.provider,
        "threads": threads,
        "input_hw": candidate.input_hw,
        "latency_ms": asdict(timing),
        "end_to_end_ms": asdict(latency(_flat(recording.end_to_end))),
        "cold_start_ms": {"load": 1000 * memory.load_seconds, "first_inference": 1000 * memory.first_seconds},
        "warm_up": asdict(recording.warm_up),
        "block_medians_ms": medians,
        "block_spread": (max(medians) - min(medians)) / float(np.median(medians)),
        "throughput_per_second": timing.per_second,
        "by_threads": {
            str(count): {"per_second": by_label[label].per_second, "latency_ms": asdict(by_label[label])}
            for count, by_label in measurement.by_threads.items()
        },
        "peak_memory_bytes": memory.process,
        "model_memory_bytes": memory.model,
        "device_memory_bytes": memory.device,
    }


def times_by_image(recording: Timing) -> dict[str, list]:
    """The milliseconds of every run on each image."""
    return {
        "latency_ms": [[1000 * seconds for seconds in runs] for runs in recording.seconds],
        "end_to_end_ms": [[1000 * seconds for seconds in runs] for runs in recording.end_to_end],
    }


def heading(
    title: str, measurement: Timed, settings: BenchmarkSettings, notes: Sequence[str], asked: CommandLine
) -> Document:
    """What every document begins with."""
    return {
        "schema": SCHEMA,
        "title": title,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": asked.command,
        "settings": plain({**asked.flags, **flat(settings)}),
        "notes": list(notes),
        "duration_s": _durations(measurement),
        "images": [{"dataset": sample.dataset, "image": sample.image.name} for sample in measurement.samples],
    }


def scores(meters: Sequence[IoUMeter], classes: Classes, strata: Sequence[str], seed: int) -> dict[str, object]:
    """The figures of some images together, with their confusion matrix and the intervals of the IoU; `strata` names the
    dataset of each image."""
    total = IoUMeter(classes)
    for meter in meters:
        total.merge(meter)
    mean, *intervals = iou_intervals(confusions(meters), strata, seed)
    named = zip(classes.scored_names, intervals, strict=True)
    return {
        **total.summary(),
        "confusion": total.confusion.tolist(),
        "confusion_share": plain((total.confusion.double() / total.confusion.sum(dim=1, keepdim=True)).tolist()),
        "miou_interval": [mean.low, mean.high],
        "iou_interval": {name: [one.low, one.high] for name, one in named},
    }


def confusions(meters: Sequence[IoUMeter]) -> np.ndarray:
    """The matrices of the images, (N, C, C or C + 1) [target, predicted]."""
    return np.stack([meter.confusion.numpy() for meter in meters])


def difference(
    reference: str, label: str, models: Mapping[str, ModelResult], measurement: Measurement, seed: int
) -> Difference:
    """One model against the reference, paired image by image."""
    first, second = (measurement.recordings[name] for name in (reference, label))
    before, after = (confusions(recording.meters) for recording in (first, second))
    names = measurement.classes.scored_names
    mean, classes = _named_differences(before, after, names, _strata(measurement), seed)
    speed = speedup_interval(by_block(first.seconds, measurement), by_block(second.seconds, measurement), seed)
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
            for name, indices in groups_of(measurement).items()
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


def _strata(measurement: Measurement) -> list[str]:
    return [sample.dataset for sample in measurement.samples]


def groups_of(measurement: Timed) -> dict[str, list[int]]:
    """Dataset -> indices of its images."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(measurement.samples):
        groups.setdefault(sample.dataset, []).append(index)
    return groups


def _flat(seconds: Sequence[Sequence[float]]) -> list[float]:
    """The times of all runs of all images."""
    return [one for runs in seconds for one in runs]


def by_block(seconds: Sequence[Sequence[float]], measurement: Timed) -> list[list[float]]:
    """The times of the images, block by block."""
    return [_flat([seconds[index] for index in block]) for block in measurement.blocks]


def plain(value: object) -> object:
    """The same for JSON: tuples become lists, paths strings, and a figure that is not defined (nan) null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value
