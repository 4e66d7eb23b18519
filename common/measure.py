"""Measure several models on the same images: scores, times and class maps, in turns, so that a drift hits all alike."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from common.candidates import Candidate
from common.datasets import Sample, load_ids, load_image
from common.labels import CLASSES
from common.latency import Latency, WarmUp, interleaved_latency, no_garbage_collection, timed, warm_up
from common.memory import PeakMemory, peak_memory
from common.metrics import IoUMeter
from common.predictors import Predictor, require_class_map
from common.progress import progress
from common.transforms import read_bytes, resize_mask, to_tensor

MOST_IN_BLOCK = 8  # images
FEWEST_BLOCKS = 5  # where there are as many images
SWEEP_RUNS = 5  # timed runs of each model for each number of threads

Size = tuple[int, int]  # height, width


class Prepared(NamedTuple):
    """One sample, ready for a model of one input size."""

    image: Tensor  # float32 (1, 3, H, W)
    target: Tensor  # int64 (1, H, W)
    seconds: float  # that decoding, cutting, resizing and normalising the image took


@dataclass
class Recording:
    """What one model did; the lists are in the order of the images."""

    provider: str
    warm_up: WarmUp
    seconds: list[float] = field(default_factory=list)  # prepared image -> logits
    end_to_end: list[float] = field(default_factory=list)  # image file -> class map
    meters: list[IoUMeter] = field(default_factory=list)  # one an image
    maps: list[np.ndarray] = field(default_factory=list)  # class ids as the bytes of a PNG: a hundredth of the memory

    def class_map(self, index: int) -> np.ndarray:
        """The predicted class ids of one image, uint8 (H, W)."""
        return cv2.imdecode(self.maps[index], cv2.IMREAD_UNCHANGED)


@dataclass
class Measurement:
    """All models on all samples."""

    candidates: Mapping[str, Candidate]
    samples: Sequence[Sample]
    blocks: list[range]  # indices of the samples that were timed side by side
    recordings: dict[str, Recording]
    memory: dict[str, PeakMemory] = field(default_factory=dict)
    by_threads: dict[int, dict[str, Latency]] = field(default_factory=dict)


def measure(
    candidates: Mapping[str, Candidate], samples: Sequence[Sample], warmup_runs: int, threads: int, workers: int
) -> Measurement:
    """Score and time every model on every sample, one image at a time.

    The samples go by in blocks: a block is prepared, then each model takes all of it, another one first every time.
    Only the model's call is inside its clock; `workers` threads read the masks while no clock runs.

    Raises:
        ValueError: an output that is no map of the classes in the size of the input.
    """
    predictors = {label: candidate.open(threads) for label, candidate in candidates.items()}
    recordings = {
        label: Recording(predictor.provider, _warm(predictor, samples[0], candidates[label].input_hw, warmup_runs))
        for label, predictor in predictors.items()
    }
    blocks, labels = blocks_of(len(samples)), list(candidates)
    sizes = list(dict.fromkeys(candidate.input_hw for candidate in candidates.values()))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for turn, block in enumerate(progress(blocks, "measure", unit="block")):
            prepared = prepare([samples[index] for index in block], sizes, pool)
            first = turn % len(labels)
            for label in labels[first:] + labels[:first]:
                _record(label, predictors[label], prepared[candidates[label].input_hw], recordings[label])
    return Measurement(candidates, samples, blocks, recordings)


def blocks_of(count: int) -> list[range]:
    """Split `count` images into blocks of equal size, the last one shorter."""
    size = max(1, min(MOST_IN_BLOCK, count // FEWEST_BLOCKS))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _warm(predict: Predictor, sample: Sample, hw: Size, runs: int) -> WarmUp:
    image = to_tensor(load_image(sample, hw)[0])[None]
    with no_garbage_collection():
        return warm_up(lambda: predict(image), runs)


def prepare(samples: Sequence[Sample], sizes: Sequence[Size], pool: ThreadPoolExecutor) -> dict[Size, list[Prepared]]:
    """Images and masks of some samples in every size; the images one after the other, because they are timed."""
    for sample in samples:
        read_bytes(sample.image)  # from the disk; else the first size alone would wait for it
    with no_garbage_collection():
        read = {size: [timed(partial(_image, sample, size)) for sample in samples] for size in sizes}
    file_sizes = [file_hw for (_, file_hw), _ in read[sizes[0]]]
    masks = list(pool.map(load_ids, samples, file_sizes))
    return {
        size: [
            Prepared(image[None], torch.from_numpy(resize_mask(ids, size)).long()[None], seconds)
            for ((image, _), seconds), ids in zip(read[size], masks, strict=True)
        ]
        for size in sizes
    }


def _image(sample: Sample, size: Size) -> tuple[Tensor, Size]:
    rgb, file_hw = load_image(sample, size)
    return to_tensor(rgb), file_hw


def _record(label: str, predict: Predictor, block: Sequence[Prepared], recording: Recording) -> None:
    maps = []
    with no_garbage_collection():
        for prepared in block:
            logits, seconds = timed(partial(predict, prepared.image))
            require_class_map(logits, prepared.target.shape[1:], label)
            ids, argmax_seconds = timed(partial(_class_map, logits))
            recording.seconds.append(seconds)
            recording.end_to_end.append(prepared.seconds + seconds + argmax_seconds)
            maps.append(ids)
    for ids, prepared in zip(maps, block, strict=True):
        recording.meters.append(IoUMeter(len(CLASSES)))
        recording.meters[-1].update(ids, prepared.target)
        recording.maps.append(cv2.imencode(".png", ids[0].numpy(), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1])


def _class_map(logits: Tensor) -> Tensor:
    return logits.max(dim=1).indices.to(torch.uint8)  # argmax takes ten times as long over this axis


def measure_memory(candidates: Mapping[str, Candidate], threads: int) -> dict[str, PeakMemory]:
    """Memory and cold start of every model, each in a process of its own."""
    return {
        label: peak_memory(partial(candidate.open, threads), (1, 3, *candidate.input_hw), threads)
        for label, candidate in progress(candidates.items(), "memory", unit="model")
    }


def measure_threads(
    candidates: Mapping[str, Candidate], sample: Sample, counts: Sequence[int]
) -> dict[int, dict[str, Latency]]:
    """The latency of every model with each number of threads, the models in turns."""
    before, result = torch.get_num_threads(), {}
    images = {hw: to_tensor(load_image(sample, hw)[0])[None] for hw in {c.input_hw for c in candidates.values()}}
    try:
        for count in progress(sorted(set(counts)), "threads"):
            predictors = {label: candidate.open(count) for label, candidate in candidates.items()}
            calls = {
                label: partial(predict, images[candidates[label].input_hw]) for label, predict in predictors.items()
            }
            result[count] = interleaved_latency(calls, SWEEP_RUNS, warmup=2)
    finally:
        torch.set_num_threads(before)
    return result
