"""The results document of a benchmark without a map of classes: how near the outputs of each model come to the first
model's, and where there are labels the scores of each.

It has the keys of the other document but for those of class maps: `agreement` is set, and `models` have `outputs`, and
`scores` where there are labels, in the place of `overall`. docs/results.md describes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common.benchmark.constant import constant_layer
from common.benchmark.outputs import OutputMeasurement, OutputRecording
from common.benchmark.records import cost, times_by_image
from common.benchmark.results import Document, heading, plain
from common.benchmark.scores import (
    dataset_scores,
    difference_scores,
    model_scores,
    score_document,
    scores_by_image,
)
from common.benchmark.settings import BenchmarkSettings, CommandLine
from common.benchmark.verdict import size_words, speed_words
from common.runtimes.agreement import OutputMeter, is_nearly_constant, merged
from common.scoring.statistics import speedup_interval
from common.system.environment import environment

WORST_IMAGES = 6  # listed by SQNR
CONSTANT_IMAGES = 8  # on which the layer is looked for that loses an output


def agreement_document(
    title: str,
    measurement: OutputMeasurement,
    settings: BenchmarkSettings,
    notes: Sequence[str] = (),
    asked: CommandLine | None = None,
) -> Document:
    """The whole of results.json, as JSON takes it; the first model is the reference."""
    reference, *others = measurement.candidates
    models = {label: _model(label, measurement, settings) for label in measurement.candidates}
    constant = [note for label in others for note in constant_outputs(label, reference, measurement)]
    return {
        **heading(title, measurement, settings, [*notes, *constant], asked or CommandLine()),
        "agreement": True,
        "outputs": measurement.outputs,
        **({"score": score_document(measurement.score)} if measurement.score else {}),
        "reference": reference,
        "models": {label: plain(model) for label, model in models.items()},
        "differences": {
            label: plain(_difference(reference, label, models, measurement, settings.seed)) for label in others
        },
        "environment": environment(),
    }


def _model(label: str, measurement: OutputMeasurement, settings: BenchmarkSettings) -> dict[str, Any]:
    recording, names, score = measurement.recordings[label], list(measurement.outputs), measurement.score
    by_image = [[meter.agreement() for meter in meters] for meters in recording.meters]
    found = _agreements(names, recording.meters)
    for name, variation in zip(names, recording.variations, strict=True):
        found[name]["deviation"] = variation.deviation()
    datasets: dict[str, dict[str, Any]] = {
        name: {"images": len(indices), "outputs": _agreements(names, [recording.meters[i] for i in indices])}
        for name, indices in measurement.datasets.items()
    }
    if score:
        for name, one in datasets.items():
            one["scores"] = dataset_scores(score, label, measurement, name, settings.seed)
    return {
        **cost(label, measurement, settings.threads),
        "outputs": found,
        **({"scores": model_scores(score, label, measurement, settings.seed)} if score else {}),
        "datasets": datasets,
        "per_image": {
            **times_by_image(recording),
            "sqnr_db": {name: [each[i].decibels for each in by_image] for i, name in enumerate(names)},
            "equal_pixels": {name: [each[i].equal_pixels for each in by_image] for i, name in enumerate(names)},
            **(scores_by_image(score, label, measurement) if score else {}),
        },
    }


def _agreements(names: Sequence[str], meters: Sequence[Sequence[OutputMeter]]) -> dict[str, dict[str, float | None]]:
    """By output, over some images."""
    found = {name: merged(each).agreement() for name, each in zip(names, zip(*meters, strict=True), strict=True)}
    return {
        name: {
            "sqnr_db": each.decibels,
            "largest_difference": each.largest_difference,
            "output_range": each.output_range,
            "equal_pixels": each.equal_pixels,
        }
        for name, each in found.items()
    }


def constant_outputs(label: str, reference: str, measurement: OutputMeasurement) -> list[str]:
    """A sentence for each output that varies in the reference and hardly does in another model."""
    recordings: Mapping[str, OutputRecording] = measurement.recordings
    pairs = zip(recordings[reference].variations, recordings[label].variations, strict=True)
    return [
        f"{label}: the output {name} is nearly constant: it deviates by {actual.deviation():.2g} over the images, that "
        f"of {reference} by {expected.deviation():.2g}{_lost_by(label, name, measurement)}."
        for name, (expected, actual) in zip(measurement.outputs, pairs, strict=True)
        if is_nearly_constant(expected, actual)
    ]


def _lost_by(label: str, output: str, measurement: OutputMeasurement) -> str:
    """The layer that lost it, of an ONNX file."""
    path = measurement.candidates[label].path
    if path.suffix != ".onnx" or len(measurement.samples) < 2:
        return ""
    layer = constant_layer(path, output, measurement.spread_inputs(label, CONSTANT_IMAGES))
    return f"; the first layer with the same codes for all images is {layer}" if layer else ""


def _difference(
    reference: str, label: str, models: Mapping[str, dict[str, Any]], measurement: OutputMeasurement, seed: int
) -> dict[str, Any]:
    one, other = models[reference], models[label]
    before, after = (measurement.by_block(measurement.recordings[name].seconds) for name in (reference, label))
    speed, size_ratio = speedup_interval(before, after, seed), other["size_bytes"] / one["size_bytes"]
    told = ["; ".join(_told(name, found) for name, found in other["outputs"].items())]
    memory, scored = one["model_memory_bytes"], dict[str, Any]()
    if measurement.score:
        scored = difference_scores(measurement.score, reference, label, measurement, seed)
        told.insert(0, scored.pop("told"))
    return {
        **scored,
        "verdict": f"{label} against {reference}: {size_words(size_ratio)}, {speed_words(speed)}. {'. '.join(told)}.",
        "speedup": asdict(speed),
        "size_ratio": size_ratio,
        "memory_ratio": other["model_memory_bytes"] / memory if memory else None,
        "worst_images": _worst_images(other["per_image"]["sqnr_db"]),
    }


def _told(name: str, found: Mapping[str, float | None]) -> str:
    pixels = "" if found["equal_pixels"] is None else f", {100 * found['equal_pixels']:.2f} % equal"
    return f"{name}: SQNR {found['sqnr_db']:.1f} dB{pixels}"


def _worst_images(decibels: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The images whose outputs are farthest off, by the mean SQNR of the outputs."""
    means = [sum(values) / len(values) for values in zip(*decibels.values(), strict=True)]
    order = sorted(range(len(means)), key=lambda index: means[index])[:WORST_IMAGES]
    return [{"index": index, "sqnr_db": means[index]} for index in order]
