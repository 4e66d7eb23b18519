"""The steps of a run: one plan of which images each of them takes, and the loader that follows it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from common.data.loading import EpochSampler, worker_init
from common.system.distributed import share
from common.training.settings import TrainingSettings
from common.training.task import Batch

PREFETCHED_IMAGES = 64  # per worker, at least two batches: enough to bridge a checkpoint or a slow disk

Draw = tuple[int, int]  # an epoch and an image's index: what an `AugmentedDataset` is indexed with


class Step(NamedTuple):
    """An optimizer step: the images that all processes together take, from the place `first` of an epoch's order on."""

    epoch: int
    first: int
    draws: list[Draw]

    @property
    def images(self) -> int:
        """How many images that are."""
        return len(self.draws)


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

    def after(self, step: Step, loss: float, length: int, interval: int) -> "Position":
        """The place after a step; a moment is due every `interval` images of an epoch and after its `length`."""
        images, epoch_ends = step.first + step.images, step.first + step.images >= length
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


@dataclass(frozen=True)
class Plan:
    """The steps of a run over a dataset of `images`; the settings are those of `TrainingSettings`."""

    images: int
    epochs: int
    batch_size: int
    samples_per_epoch: int | None
    seed: int

    @classmethod
    def of(cls, settings: TrainingSettings, images: int) -> "Plan":
        """The plan that the settings make for a dataset."""
        return cls(images, settings.epochs, settings.batch_size, settings.samples_per_epoch, settings.seed)

    @property
    def epoch_length(self) -> int:
        """How many images an epoch takes."""
        return min(self.images, self.samples_per_epoch or self.images)

    @property
    def total_steps(self) -> int:
        """Optimizer steps from the start of the run to its end."""
        return self.epochs * -(-self.epoch_length // self.batch_size)

    def steps(self, start: Position) -> Iterator[Step]:
        """All steps from `start` to the end of the last epoch."""
        for epoch in range(start.epoch, self.epochs):
            order = list(EpochSampler(self.images, epoch, self.seed, stop=self.epoch_length))
            begin = start.samples if epoch == start.epoch else 0
            for first in range(begin, self.epoch_length, self.batch_size):
                yield Step(epoch, first, order[first : first + self.batch_size])


class LoadedSteps:
    """The steps of a plan from `start` on, each with this process's share of its images.

    One pool of workers for the whole run: they load ahead across epochs, and while a checkpoint is scored. They are
    started here, not with the first step.
    """

    def __init__(self, dataset: Dataset, plan: Plan, start: Position, workers: int, device: torch.device):
        prefetched = max(2, PREFETCHED_IMAGES // plan.batch_size) if workers else None
        loader = DataLoader(
            dataset,
            batch_sampler=(share(step.draws) for step in plan.steps(start)),
            num_workers=workers,
            prefetch_factor=prefetched,
            worker_init_fn=worker_init,
            generator=torch.Generator().manual_seed(plan.seed),  # a loader must not draw from the global random state
            pin_memory=device.type == "cuda",
        )
        self.seconds = 0.0  # spent waiting for images
        self.batches_ahead = workers * (prefetched or 0)  # that wait in memory
        self._steps = zip(plan.steps(start), loader, strict=True)

    def __iter__(self) -> "LoadedSteps":
        return self

    def __next__(self) -> tuple[Step, Batch]:
        begin = time.perf_counter()
        step, batch = next(self._steps)
        self.seconds += time.perf_counter() - begin
        return step, tuple(batch)
