"""Measure several models on the same images: scores, times and class maps, in turns, so that a drift hits all alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from common.benchmark.memory import ModelMemory, peak_memory
from common.benchmark.settings import BenchmarkSettings
from common.data.classes import Classes, classes_of
from common.data.datasets import Sample, evenly_spaced
from common.data.decoding import read_bytes
from common.data.loading import load_ids, load_image
from common.data.transforms import ImageFormat, resize_mask
from common.runtimes.candidates import Candidate, Form
from common.runtimes.predictors import Predictor, class_map, require_class_map
from common.scoring.latency import Latency, WarmUp, interleaved_latency, no_garbage_collection, timed, warm_up
from common.scoring.metrics import IoUMeter
from common.system.progress import progress
from models import Network

MOST_IN_BLOCK = 8  # images
FEWEST_BLOCKS = 5  # where there are as many images
SWEEP_RUNS = 10  # timed runs of each model for each number of threads, on as many images

Size = tuple[int, int]  # height, width


class Input(NamedTuple):
    """One sample as models of one input size take it."""

    image: Tensor  # float32 (1, 3, H, W), or what a file for a camera takes
    target: Tensor  # int64 (1, H, W)
    seconds: float  # that decoding, cutting, resizing and normalising the image took


@dataclass
class Timing:
    """The times of one model; the lists are in the order of the images, with a time for each of its runs."""

    provider: str
    warm_up: WarmUp
    seconds: list[list[float]]  # input tensor -> outputs
    end_to_end: list[list[float]]  # image file -> class map, or outputs


@dataclass
class Recording(Timing):
    """What one model did."""

    meters: list[IoUMeter] = field(default_factory=list)  # one an image
    maps: list[np.ndarray] = field(default_factory=list)  # class ids as the bytes of a PNG: a hundredth of the memory

    def class_map(self, index: int) -> np.ndarray:
        """The predicted class ids of one image, uint8 (H, W)."""
        return np.asarray(cv2.imdecode(self.maps[index], cv2.IMREAD_UNCHANGED))


class Shown(Protocol):
    """An image of a benchmark."""

    @property
    def dataset(self) -> str: ...

    @property
    def image(self) -> Path: ...


class Timed(Protocol):
    """What the times and the memory of all models are taken from, whatever their outputs are judged by."""

    candidates: Mapping[str, Candidate]
    blocks: list[range]
    preparation_seconds: float
    memory: dict[str, ModelMemory]
    by_threads: dict[int, dict[str, Latency]]

    @property
    def samples(self) -> Sequence[Shown]: ...

    @property
    def recordings(self) -> Mapping[str, Timing]: ...

    @property
    def datasets(self) -> dict[str, list[int]]: ...

    def by_block(self, seconds: Sequence[Sequence[float]]) -> list[list[float]]: ...


class InBlocks:
    """Samples of some datasets, timed in blocks."""

    samples: Sequence[Any]
    blocks: list[range]  # indices of the samples that were timed side by side

    @property
    def strata(self) -> list[str]:
        """The dataset of each sample."""
        return [sample.dataset for sample in self.samples]

    @property
    def datasets(self) -> dict[str, list[int]]:
        """Dataset -> indices of its samples."""
        groups: dict[str, list[int]] = {}
        for index, dataset in enumerate(self.strata):
            groups.setdefault(dataset, []).append(index)
        return groups

    def by_block(self, seconds: Sequence[Sequence[float]]) -> list[list[float]]:
        """The times of all runs in each block, of those for each sample."""
        return [all_runs([seconds[index] for index in block]) for block in self.blocks]


@dataclass
class Measurement(InBlocks):
    """All models on all samples."""

    candidates: Mapping[str, Candidate]
    samples: Sequence[Sample]
    classes: Classes
    blocks: list[range]  # indices of the samples that were timed side by side
    recordings: dict[str, Recording]
    preparation_seconds: float = 0.0  # decoding, resizing and normalising, in every size, and the masks
    memory: dict[str, ModelMemory] = field(default_factory=dict)
    by_threads: dict[int, dict[str, Latency]] = field(default_factory=dict)


def all_runs(seconds: Iterable[Iterable[float]]) -> list[float]:
    """The times of all runs of all samples."""
    return [one for runs in seconds for one in runs]


def measure(
    candidates: Mapping[str, Candidate], samples: Sequence[Sample], network: Network, settings: BenchmarkSettings
) -> Measurement:
    """Score every model on every sample, one image at a time, and time it.

    The samples go by in blocks: a block is loaded, then each model takes all of it, another one first every time.
    Only the model's call is inside its clock.

    Raises:
        ValueError: an output that is no map of the classes in the size of the input.
    """
    predictors = {label: candidate.open(settings.threads) for label, candidate in candidates.items()}
    recordings = {}
    for label, predict in predictors.items():
        image_format = ImageFormat.of(network, *candidates[label].form)
        warm = _warm(predict, samples[0], image_format, settings.warmup_runs)
        recordings[label] = Recording(predict.provider, warm, [[] for _ in samples], [[] for _ in samples])
    classes = classes_of(network, samples)
    measurement = Measurement(candidates, samples, classes, blocks_of(len(samples)), recordings)
    forms = dict.fromkeys(candidate.form for candidate in candidates.values())
    formats = {form: ImageFormat.of(network, *form) for form in forms}
    orders = rotations(list(candidates))
    with ThreadPoolExecutor(max(1, settings.workers)) as pool:
        for block in progress(measurement.blocks, "measure", unit="block"):
            inputs, seconds = timed(partial(load_inputs, [samples[index] for index in block], formats, pool))
            measurement.preparation_seconds += seconds
            for run in range(settings.timed_runs):
                for label in next(orders):
                    mine, recording = inputs[candidates[label].form], recordings[label]
                    maps = _time(label, predictors[label], block, mine, recording, classes)
                    if run == 0:
                        _score(maps, mine, recording, classes)
    return measurement


def rotations(labels: Sequence[str]) -> Iterator[list[str]]:
    """The models in turns, another one first every time."""
    for first in cycle(range(len(labels))):
        yield [*labels[first:], *labels[:first]]


def blocks_of(count: int) -> list[range]:
    """Split `count` images into blocks of equal size, the last one shorter."""
    size = max(1, min(MOST_IN_BLOCK, count // FEWEST_BLOCKS))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _warm(predict: Predictor, sample: Sample, image_format: ImageFormat, runs: int) -> WarmUp:
    image = _image(sample, image_format)[0][None]
    with no_garbage_collection():
        return warm_up(lambda: predict(image), runs)


def load_inputs(
    samples: Sequence[Sample], formats: Mapping[Form, ImageFormat], pool: ThreadPoolExecutor
) -> dict[Form, list[Input]]:
    """Images and masks of some samples in every form; the images one after the other, because they are timed."""
    for sample in samples:
        read_bytes(sample.image)  # from the disk; else the first form alone would wait for it
    with no_garbage_collection():
        read = {form: [timed(partial(_image, sample, each)) for sample in samples] for form, each in formats.items()}
    file_sizes = [file_hw for (_, file_hw), _ in next(iter(read.values()))]
    masks = list(pool.map(load_ids, samples, file_sizes))
    return {
        form: [
            Input(image[None], torch.from_numpy(resize_mask(ids, form[0])).long()[None], seconds)
            for ((image, _), seconds), ids in zip(read[form], masks, strict=True)
        ]
        for form in read
    }


def _image(sample: Sample, image_format: ImageFormat) -> tuple[Tensor, Size]:
    rgb, file_hw = load_image(sample, image_format.hw)
    return image_format.to_tensor(rgb), file_hw


def _time(
    label: str, predict: Predictor, block: range, inputs: Sequence[Input], recording: Recording, classes: Classes
) -> list[Tensor]:
    """Run the images of a block once, record their times, and give their class maps."""
    maps = []
    with no_garbage_collection():
        for index, one in zip(block, inputs, strict=True):
            logits, seconds = timed(partial(predict, one.image))
            require_class_map(logits, len(classes.names), (one.target.shape[1], one.target.shape[2]), label)
            ids, argmax_seconds = timed(partial(class_map, logits))
            recording.seconds[index].append(seconds)
            recording.end_to_end[index].append(one.seconds + seconds + argmax_seconds)
            maps.append(ids)
    return maps


def _score(maps: Sequence[Tensor], inputs: Sequence[Input], recording: Recording, classes: Classes) -> None:
    for ids, one in zip(maps, inputs, strict=True):
        recording.meters.append(IoUMeter(classes))
        recording.meters[-1].update(ids, one.target)
        recording.maps.append(cv2.imencode(".png", ids[0].numpy(), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1])


def measure_memory(candidates: Mapping[str, Candidate], threads: int, channels: int = 3) -> dict[str, ModelMemory]:
    """Memory and cold start of every model, each in a process of its own."""
    return {
        label: peak_memory(partial(candidate.open, threads), candidate.input_shape(channels), threads, candidate.dtype)
        for label, candidate in progress(candidates.items(), "memory", unit="model")
    }


def measure_threads(
    candidates: Mapping[str, Candidate], samples: Sequence[Sample], network: Network, counts: Sequence[int]
) -> dict[int, dict[str, Latency]]:
    """The latency of every model with each number of threads, on some of the samples, the models in turns."""
    chosen = evenly_spaced(samples, SWEEP_RUNS)
    images = {
        form: [_image(sample, ImageFormat.of(network, *form))[0][None] for sample in chosen]
        for form in {candidate.form for candidate in candidates.values()}
    }
    return sweep_threads(candidates, images, counts)


def sweep_threads(
    candidates: Mapping[str, Candidate], images: Mapping[Form, Sequence[Tensor]], counts: Sequence[int]
) -> dict[int, dict[str, Latency]]:
    """The latency of every model with each number of threads on inputs of its form, the models in turns."""
    before, result = torch.get_num_threads(), {}
    try:
        for count in progress(sorted(set(counts)), "threads"):
            calls = {
                label: _each_in_turn(candidate.open(count), images[candidate.form])
                for label, candidate in candidates.items()
            }
            result[count] = interleaved_latency(calls, SWEEP_RUNS, warmup=2)
    finally:
        torch.set_num_threads(before)
    return result


def _each_in_turn(predict: Predictor, images: Sequence[Tensor]) -> Callable[[], Tensor]:
    turns = cycle(images)
    return lambda: predict(next(turns))
