"""The record of one model in results.json: its file, times, memory and accuracy, together and image by image."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.benchmark.measure import Measurement, Recording, Timed, Timing, all_runs
from common.data.classes import Classes
from common.scoring.latency import latency
from common.scoring.metrics import IoUMeter, iou_of_targets, mean_of_known
from common.scoring.statistics import iou_intervals
from common.system.files import sha256


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


def model_result(label: str, measurement: Measurement, threads: int, seed: int) -> ModelResult:
    """The record of one model."""
    recording = measurement.recordings[label]
    return ModelResult(
        **cost(label, measurement, threads),
        overall=scores(recording.meters, measurement.classes, measurement.strata, seed),
        datasets={
            name: _on_dataset(recording, indices, measurement.classes, name, seed)
            for name, indices in measurement.datasets.items()
        },
        per_image=_per_image(recording),
    )


def cost(label: str, measurement: Timed, threads: int) -> dict[str, Any]:
    """What a model is and takes, whatever its outputs are judged by: the fields that all records of models share."""
    candidate, recording = measurement.candidates[label], measurement.recordings[label]
    memory, timing = measurement.memory[label], latency(all_runs(recording.seconds))
    medians = [1000 * float(np.median(block)) for block in measurement.by_block(recording.seconds)]
    return {
        "path": str(candidate.path),
        "size_bytes": candidate.size_bytes,
        "sha256": sha256(*candidate.files),
        "precision": candidate.precision,
        "provider": recording.provider,
        "threads": threads,
        "input_hw": candidate.input_hw,
        "latency_ms": asdict(timing),
        "end_to_end_ms": asdict(latency(all_runs(recording.end_to_end))),
        "cold_start_ms": {"load": 1000 * memory.load_seconds, "first_inference": 1000 * memory.first_seconds},
        "warm_up": asdict(recording.warm_up),
        "block_medians_ms": medians,
        "block_spread": (max(medians) - min(medians)) / float(np.median(medians)),
        "throughput_per_second": timing.per_second,
        "by_threads": _by_threads(label, measurement),
        "peak_memory_bytes": memory.process,
        "model_memory_bytes": memory.model,
        "device_memory_bytes": memory.device,
    }


def _by_threads(label: str, measurement: Timed) -> dict[str, dict[str, object]]:
    timings = {str(count): by_label[label] for count, by_label in measurement.by_threads.items()}
    return {count: {"per_second": one.per_second, "latency_ms": asdict(one)} for count, one in timings.items()}


def _on_dataset(
    recording: Recording, indices: Sequence[int], classes: Classes, dataset: str, seed: int
) -> dict[str, object]:
    """The figures of the images of one dataset."""
    meters, seconds = [recording.meters[i] for i in indices], [recording.seconds[i] for i in indices]
    return {
        **scores(meters, classes, [dataset] * len(indices), seed),
        "latency_ms": asdict(latency(all_runs(seconds))),
    }


def times_by_image(recording: Timing) -> dict[str, list]:
    """The milliseconds of every run on each image."""
    return {
        "latency_ms": [[1000 * seconds for seconds in runs] for runs in recording.seconds],
        "end_to_end_ms": [[1000 * seconds for seconds in runs] for runs in recording.end_to_end],
    }


def _per_image(recording: Recording) -> dict[str, list]:
    return {
        **times_by_image(recording),
        "miou": mean_of_known(iou_of_targets(confusions(recording.meters))).tolist(),
        "confusion": [meter.confusion.flatten().tolist() for meter in recording.meters],
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
        "confusion_share": (total.confusion.double() / total.confusion.sum(dim=1, keepdim=True)).tolist(),
        "miou_interval": [mean.low, mean.high],
        "iou_interval": {name: [one.low, one.high] for name, one in named},
    }


def confusions(meters: Sequence[IoUMeter]) -> np.ndarray:
    """The matrices of the images, (N, C, C or C + 1) [target, predicted]."""
    return np.stack([meter.confusion.numpy() for meter in meters])
