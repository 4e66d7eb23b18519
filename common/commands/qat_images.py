"""What benchmark_qat_model.py measures a trained network on: images with masks of classes, other labels, or none."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.benchmark.float_images import divide, labelled_inputs, shot_inputs
from common.benchmark.gate import Gate
from common.benchmark.image_counts import LabelledInput
from common.benchmark.results import Document
from common.commands.inputs import labelled_shots_of, sample_source, shots_of
from common.commands.reports import run_benchmark, run_output_benchmark
from common.data.bad_samples import usable_samples
from common.data.datasets import SPLITS, evenly_spaced, spread
from common.data.loading import SampleDataset
from common.data.pairs import BadSample, Sample
from common.data.shots import ShotDataset, split_shots
from common.data.transforms import ImageFormat
from common.networks.image_inputs import image_inputs
from common.runtimes.candidates import Candidate
from common.scoring.evaluate import calibration_batches, drawn_inputs
from common.scoring.figures import Score
from models import Network

CPU = torch.device("cpu")
TITLE = "INT8 from QAT"

Run = Callable[..., Document]  # (folder, candidates, gate, notes=...)


@dataclass(frozen=True)
class Images:
    """Where inputs for the calibration and for the comparison of files come from, and how models are benchmarked."""

    training: int  # images to calibrate on
    validation: Sequence[Any]  # images that are scored
    draw: Callable[[int, int], Iterable[Tensor]]  # (count, batch size) -> inputs from training images
    inputs: Callable[[int], list[Tensor]]  # inputs (1, C, H, W) from so many validation images
    run: Run
    choosing: Sequence[Any]  # with --auto_float the validation images to choose by, none of which is scored
    read: Callable[[Sequence[Any]], list[LabelledInput]]  # such images, or those that are scored, for a choice


def labelled_images(args: argparse.Namespace, network: Network, input_hw: tuple[int, int]) -> Images:
    """Those of `--dataset_root` for a network that gives a map of classes."""
    bad: list[BadSample] = []
    find = partial(usable_samples, sample_source(args, network, args.dataset_root), bad=bad)
    training, held_out = find("train"), spread(find("val"), args.num_samples_per_dataset)
    choosing, validation = divide(held_out) if args.auto_float else ([], held_out)
    image_format = ImageFormat.of(network, input_hw)

    def draw(count: int, batch_size: int) -> Iterable[Tensor]:
        return calibration_batches(training, count, batch_size, image_format, args.seed, args.workers)

    def inputs(count: int) -> list[Tensor]:
        dataset = SampleDataset(evenly_spaced(validation, count), image_format)
        return [dataset[index].image[None] for index in range(len(dataset))]

    def run(folder: Path, candidates: Mapping[str, Candidate], gate: Gate, **parts: Any) -> Document:
        return run_benchmark(args, folder, TITLE, candidates, validation, network, gate, bad=bad, **parts)

    return Images(
        len(training), validation, draw, inputs, run, choosing, partial(labelled_inputs, image_format=image_format)
    )


def output_images(args: argparse.Namespace, network: Network, input_hw: tuple[int, int], score: Score | None) -> Images:
    """Those of `--images`, or with a score those of `--dataset_root` for a network that gives no map of classes: the
    tenth that trainings leave aside is measured on, the others calibrate."""
    made = image_inputs(args.name, network, input_hw, CPU, args.egolanes_checkpoint)
    bad: list[BadSample] = []
    if score:
        training, held_out = (labelled_shots_of(args, network, split, bad) for split in SPLITS)
    else:
        training, held_out = split_shots(shots_of(args, network, bad))
    held_out = spread(held_out, args.num_samples_per_dataset)
    choosing, validation = divide(held_out) if args.auto_float else ([], held_out)

    def draw(count: int, batch_size: int) -> Iterable[Tensor]:
        return drawn_inputs(training, made, count, batch_size, args.seed, args.workers)

    def inputs(count: int) -> list[Tensor]:
        dataset = ShotDataset(evenly_spaced(validation, count), made.shots)
        return [made(dataset[index][None]).contiguous() for index in range(len(dataset))]

    def run(folder: Path, candidates: Mapping[str, Candidate], gate: Gate, **parts: Any) -> Document:
        parts.pop("sensitivity")
        return run_output_benchmark(
            args, folder, TITLE, candidates, validation, made, network, gate, score=score, bad=bad, **parts
        )

    return Images(len(training), validation, draw, inputs, run, choosing, partial(shot_inputs, inputs=made))


def samples_with_masks(images: Images) -> Sequence[Sample]:
    """The validation samples of `labelled_images`."""
    return images.validation
