"""Measure models on images without a map of classes: times, how near the outputs of each come to the first model's, and
where there are labels the scores."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common.benchmark.measure import (
    SWEEP_RUNS,
    InBlocks,
    Timing,
    blocks_of,
    measure_memory,
    rotations,
    sweep_threads,
)
from common.benchmark.memory import ModelMemory
from common.benchmark.settings import BenchmarkSettings
from common.data.camera import PLAIN
from common.data.datasets import evenly_spaced
from common.data.label_files import read_label
from common.data.shots import Shot
from common.networks.image_inputs import ImageInputs
from common.runtimes.agreement import OutputMeter, Variation
from common.runtimes.candidates import Candidate
from common.runtimes.predictors import Predictor
from common.scoring.figures import Evidence, Score
from common.scoring.latency import Latency, no_garbage_collection, timed, warm_up
from common.system.progress import progress
from models import Network

logger = logging.getLogger(__name__)


@dataclass
class OutputRecording(Timing):
    """What one model did; by output, in the network's order."""

    meters: list[list[OutputMeter]] = field(default_factory=list)  # of each image, against the first model
    variations: list[Variation] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)  # of each image against its label, where there are labels


@dataclass
class OutputMeasurement(InBlocks):
    """All models on all shots; the first is the reference."""

    candidates: Mapping[str, Candidate]
    samples: Sequence[Shot]
    inputs: ImageInputs
    outputs: dict[str, str]  # name -> kind
    blocks: list[range]
    recordings: dict[str, OutputRecording]
    drawn: dict[int, dict[str, list[Tensor]]]  # index of a shot -> model -> outputs (1, ...), of those to be drawn
    score: Score | None = None  # where there are labels
    preparation_seconds: float = 0.0
    memory: dict[str, ModelMemory] = field(default_factory=dict)
    by_threads: dict[int, dict[str, Latency]] = field(default_factory=dict)

    def spread_inputs(self, label: str, count: int) -> list[Tensor]:
        """So many inputs of a model, evenly spaced over the shots."""
        inputs = inputs_of(self.inputs, self.candidates[label])
        return [_input(inputs, shot) for shot in evenly_spaced(self.samples, count)]


def measure_outputs(
    candidates: Mapping[str, Candidate],
    shots: Sequence[Shot],
    inputs: ImageInputs,
    network: Network,
    settings: BenchmarkSettings,
    drawn: Sequence[int] = (),
    score: Score | None = None,
) -> OutputMeasurement:
    """Compare every model with the first on every shot, one at a time, and time it.

    The models take turns in blocks, as in `measure`. `drawn` are the shots of which the outputs are kept; with `score`
    each model is held against the labels of the shots, too.

    Raises:
        ValueError: models of different input sizes, outputs that differ in number or shape or hold NaN or are not of
            the score's task, or a label that cannot be read.
    """
    require_one_size(candidates)
    predictors = {label: candidate.open(settings.threads) for label, candidate in candidates.items()}
    forms = {candidate.form: inputs_of(inputs, candidate) for candidate in candidates.values()}
    first = {form: _input(made, shots[0]) for form, made in forms.items()}
    recordings, found = {}, {}
    for label, predict in predictors.items():
        images = first[candidates[label].form]
        recordings[label] = _warmed(predict, images, settings.warmup_runs, len(shots))
        found[label] = predict.outputs(images)
    outputs = _named(network, found)
    blocks = blocks_of(len(shots))
    kept: dict[int, dict[str, list[Tensor]]] = {index: {} for index in drawn}
    measurement = OutputMeasurement(candidates, shots, inputs, outputs, blocks, recordings, kept, score)
    for recording in recordings.values():
        recording.variations = [Variation() for _ in outputs]
    orders = rotations(list(candidates))
    for block in progress(blocks, "measure", unit="block"):
        read = {form: [timed(partial(_input, made, shots[index])) for index in block] for form, made in forms.items()}
        measurement.preparation_seconds += sum(seconds for each in read.values() for _, seconds in each)
        labels, seconds = timed(partial(_labels, score, [shots[index] for index in block]))
        measurement.preparation_seconds += seconds
        for run in range(settings.timed_runs):
            said = {}
            for label in next(orders):
                said[label] = _time(predictors[label], block, read[candidates[label].form], recordings[label])
            if run == 0:
                _compare(said, block, measurement)
                _score(said, labels, measurement)
    measurement.memory = measure_memory(candidates, settings.threads, network.channels)
    if settings.thread_counts:
        chosen = evenly_spaced(shots, SWEEP_RUNS)
        swept = {form: [_input(made, shot) for shot in chosen] for form, made in forms.items()}
        measurement.by_threads = sweep_threads(candidates, swept, settings.thread_counts)
    return measurement


def require_one_size(candidates: Mapping[str, Candidate]) -> tuple[int, int]:
    """The input size of all models.

    Raises:
        ValueError: they differ, or a model gives a map of classes in the place of outputs.
    """
    if maps := [label for label, candidate in candidates.items() if candidate.camera.output == "classes"]:
        raise ValueError(
            f"{maps[0]}: gives a map of classes, where outputs are compared; take a file without --output classes, or "
            "images with masks (--dataset_root)"
        )
    sizes = {candidate.input_hw: label for label, candidate in candidates.items()}
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise ValueError(f"{first} takes {one}, {second} {other}; outputs are compared at one input size")
    return next(iter(sizes))


def inputs_of(inputs: ImageInputs, candidate: Candidate) -> ImageInputs:
    """How a model takes what `inputs` makes."""
    if candidate.camera == PLAIN:
        return inputs
    image = replace(inputs.shots.image, camera=candidate.camera)
    return replace(inputs, shots=replace(inputs.shots, image=image))


def _input(inputs: ImageInputs, shot: Shot) -> Tensor:
    return inputs(inputs.shots.to_tensor(inputs.shots.load(shot))[None]).cpu().contiguous()


def _labels(score: Score | None, shots: Sequence[Shot]) -> list[Any]:
    return [read_label(shot, score.task, score.names) for shot in shots] if score else []


def _score(said: Mapping[str, list[list[Tensor]]], labels: Sequence[Any], measurement: OutputMeasurement) -> None:
    """Hold what the models said of the images of a block against their labels."""
    score = measurement.score
    if score is None:
        return
    for model, outputs in said.items():
        try:
            found = [
                score.evidence(each, label, measurement.inputs.shots)
                for each, label in zip(outputs, labels, strict=True)
            ]
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error
        measurement.recordings[model].evidence += found


def _warmed(predict: Predictor, images: Tensor, runs: int, count: int) -> OutputRecording:
    with no_garbage_collection():
        warm = warm_up(lambda: predict(images), runs)
    return OutputRecording(predict.provider, warm, [[] for _ in range(count)], [[] for _ in range(count)])


def _named(network: Network, found: Mapping[str, list[Tensor]]) -> dict[str, str]:
    """The kinds of the outputs by name, which all models give in the same shapes."""
    names = list(network.outputs or ())
    shapes = {label: [tuple(output.shape) for output in outputs] for label, outputs in found.items()}
    reference = next(iter(shapes))
    for label, own in shapes.items():
        if own != shapes[reference] or len(own) != len(names):
            raise ValueError(
                f"{label}: outputs {own}, {reference} gives {shapes[reference]}, the network {', '.join(names)}; "
                "models of one network are compared"
            )
    return dict(zip(names, network.kinds_of(shapes[reference]), strict=True))


def _time(
    predict: Predictor, block: range, read: Sequence[tuple[Tensor, float]], recording: OutputRecording
) -> list[list[Tensor]]:
    said = []
    with no_garbage_collection():
        for index, (images, prepared) in zip(block, read, strict=True):
            outputs, seconds = timed(partial(predict.outputs, images))
            recording.seconds[index].append(seconds)
            recording.end_to_end[index].append(prepared + seconds)
            said.append(outputs)
    return said


def _compare(said: Mapping[str, list[list[Tensor]]], block: range, measurement: OutputMeasurement) -> None:
    """Count what the models said of the images of a block."""
    reference = next(iter(measurement.candidates))
    for label, outputs in said.items():
        recording = measurement.recordings[label]
        for index, expected, actual in zip(block, said[reference], outputs, strict=True):
            for name, output in zip(measurement.outputs, actual, strict=True):
                if bool(torch.isnan(output.float()).any()):
                    raise ValueError(f"{label}: its output {name} holds NaN; are its weights, or its ranges, damaged?")
            meters = [OutputMeter(kind) for kind in measurement.outputs.values()]
            for meter, variation, one, other in zip(meters, recording.variations, expected, actual, strict=True):
                meter.update(one, other)
                variation.update(other)
            recording.meters.append(meters)
            if index in measurement.drawn:
                measurement.drawn[index][label] = [output.float() for output in actual]
