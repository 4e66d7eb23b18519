"""The steps of a run: which images each of them takes, loaded by one pool of workers from its start to its end."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from common.data.datasets import AugmentedDataset, EpochSampler, Example, worker_init
from common.system.distributed import shares

PREFETCHED_IMAGES = 64  # per worker, at least two batches: enough to bridge a checkpoint or a slow disk


@dataclass(frozen=True)
class Position:
    """Where a run stands: `samples` images of `epoch` (from 0) were trained on, in `step` optimizer steps overall.

    What happened since the last moment (see `common.training.loop.Moment`) goes with it but does not tell places apart.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    loss_sum: float = field(default=0.0, compare=False)  # over the steps since the last moment
    loss_count: int = field(default=0, compare=False)
    due: bool = field(default=False, compare=False)  # a moment was reached that is not scored yet

    def after(self, step: "Step", loss: float, length: int, interval: int) -> "Position":
        """The place after a step; a moment is due every `interval` images of an epoch and after its `length`."""
        images, epoch_ends = step.first + step.count, step.first + step.count >= length
        return Position(
            epoch=step.epoch + epoch_ends,
            samples=0 if epoch_ends else images,
            step=self.step + 1,
            loss_sum=self.loss_sum + loss,
            loss_count=self.loss_count + 1,
            due=epoch_ends or images // interval > step.first // interval,
        )

    def scored(self) -> "Position":
        """The same place after its moment."""
        return replace(self, loss_sum=0.0, loss_count=0, due=False)

    @property
    def trained_epoch(self) -> int:
        """The epoch of the images before this place."""
        return self.epoch - (self.samples == 0 and self.step > 0)


class Step(NamedTuple):
    """An optimizer step takes `count` images of an epoch's order, from the place `first` on."""

    epoch: int
    first: int
    count: int


def epoch_length(dataset_length: int, args: argparse.Namespace) -> int:
    """How many images an epoch takes."""
    return min(dataset_length, args.samples_per_epoch or dataset_length)


def planned_steps(length: int, start: Position, args: argparse.Namespace) -> Iterator[Step]:
    """All steps from `start` to the end of the last epoch, for epochs of `length` images."""
    for epoch in range(start.epoch, args.epochs):
        begin = start.samples if epoch == start.epoch else 0
        for first in range(begin, length, args.batch_size):
            yield Step(epoch, first, min(args.batch_size, length - first))


class RunSampler(Sampler[list[tuple[int, int]]]):
    """The parts of this rank, lists of (epoch, index), for every step from `start` to the end of the run."""

    def __init__(self, dataset_length: int, start: Position, args: argparse.Namespace):
        self.dataset_length, self.start, self.args = dataset_length, start, args

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        length = epoch_length(self.dataset_length, self.args)
        epoch, order = None, []
        for step in planned_steps(length, self.start, self.args):
            if step.epoch != epoch:
                epoch = step.epoch
                order = list(EpochSampler(self.dataset_length, epoch, self.args.seed, stop=length))
            batch = order[step.first : step.first + step.count]
            yield from (part for part, _ in shares(batch, self.args.gradient_accumulation))


def run_loader(
    dataset: AugmentedDataset, start: Position, args: argparse.Namespace, device: torch.device
) -> DataLoader:
    """One loader for the whole run: its workers load ahead across epochs, and while a checkpoint is scored.

    For a GPU the batches are in pinned memory, from which they are copied while it computes.
    """
    prefetch = max(2, PREFETCHED_IMAGES // args.batch_size) if args.workers else None
    return DataLoader(
        dataset,
        batch_sampler=RunSampler(len(dataset), start, args),
        num_workers=args.workers,
        prefetch_factor=prefetch,
        worker_init_fn=worker_init,
        generator=torch.Generator().manual_seed(args.seed),  # a loader must not draw from the global random state
        pin_memory=device.type == "cuda",
    )


class Waiting:
    """Iterate over batches and sum up the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Example]):
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Example:
        begin = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - begin
        return batch
