"""A whole run: train, score at every moment, keep checkpoints, the best weights and the record, stop in order."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.data.bad_samples import record_bad
from common.data.cache import open_cache, sample_loader
from common.data.datasets import AugmentedDataset, Sample
from common.data.pairs import BadSample
from common.networks.checkpoints import Checkpoint, Description, StateDict, save_checkpoint
from common.runtimes.predictors import TorchPredictor
from common.system.distributed import is_writer, make_equal, rank, synchronise, world_size
from common.system.environment import versions
from common.system.files import remove_leftovers, require_writable
from common.system.lock import hold_folder
from common.system.settings import flat
from common.system.signals import EXIT_CODES, StopRequest
from common.training.loop import Learner, Moment, make_optimizer, train
from common.training.monitor import Monitor, entry
from common.training.precision import keep_fake_quantization_in_float32, set_precision
from common.training.resume import CheckpointFolder, fixed_settings, restore_training_state, training_state
from common.training.schedule import WeightAverage
from common.training.settings import RunSettings
from common.training.steps import Position
from common.training.validation import Scores, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainee:
    """A model with what a run has to know of it."""

    model: nn.Module
    description: Description
    train_mode: Callable[[int], None]  # of an epoch
    eval_mode: Callable[[], object]
    state: Callable[[], StateDict]  # what a checkpoint saves
    best: str  # file of the weights with the best mIoU
    teacher: nn.Module | None = None  # whose logits it learns, too
    distill: float = 0.0  # with this weight in the loss


def open_folder(path: Path, prefix: str, bad: Sequence[BadSample] = ()) -> CheckpointFolder:
    """The folder `path` of a run's checkpoints, made where it is missing, without what killed writers left there.

    The samples `bad`, which the run leaves out, are listed in it.

    Raises:
        ValueError: another run holds it.
        OSError: it cannot be made or written to.
    """
    path.mkdir(parents=True, exist_ok=True)
    if is_writer():
        require_writable(path)
        hold_folder(path, "wait for its end, or give another --model_save_root_path")
        remove_leftovers(path)
        record_bad(path, bad)
    return CheckpointFolder(path, prefix)


def fit(
    trainee: Trainee,
    folder: CheckpointFolder,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    settings: RunSettings,
    device: torch.device,
    resumed: Checkpoint | None = None,
) -> None:
    """Train to the end, from the start or from where `resumed` stands; the model then has its final weights.

    `trainee.model` is on `device`, and has the weights of `resumed`.

    Raises:
        SystemExit: a signal stopped the run; its checkpoint is written, the code says which signal it was.
        ValueError: the loss is no longer a number, or `resumed` is of another run.
    """
    model, input_hw, recipe = trainee.model, trainee.description.input_hw, settings.training
    set_precision(recipe.precision, device)
    keep_fake_quantization_in_float32(model)
    make_equal(model)
    optimizer = make_optimizer(model, recipe)
    average = WeightAverage(model, recipe.ema) if recipe.ema else None
    fixed = fixed_settings(settings, training, input_hw)
    start, history = Position(), []
    if resumed:
        start, history = restore_training_state(resumed, optimizer, average, fixed)
    else:
        torch.manual_seed(recipe.seed + rank())  # dropout differs between the ranks
    if settings.data.cache_dir:
        open_cache(settings.data.cache_dir)
    load = sample_loader(settings.data.cache_dir, reduced=settings.data.reduced_decode)
    dataset = AugmentedDataset(training, input_hw, recipe.augmentation, recipe.seed, load)
    keeper = Keeper(trainee, folder, validation, settings, device, average, _monitor(settings, folder, start))
    with StopRequest().listening() as stop:
        learner = Learner(
            model, optimizer, trainee.train_mode, trainee.teacher, trainee.distill, average=average, stop=stop
        )
        state_at = partial(training_state, optimizer, average, fixed)
        interval, workers = settings.records.checkpoint_interval, settings.data.workers
        try:
            for moment in train(learner, dataset, recipe, device, start, checkpoint_interval=interval, workers=workers):
                keeper.keep(moment, history, state_at, stop)
        except FloatingPointError as error:
            raise ValueError(f"{error}; {_how_to_go_on(folder)}") from error
    if average:
        average.apply()


def _monitor(settings: RunSettings, folder: CheckpointFolder, start: Position) -> Monitor:
    records = settings.records
    return Monitor(
        folder.path, pictures=records.validation_pictures, tensorboard=records.tensorboard, start_step=start.step
    )


def _how_to_go_on(folder: CheckpointFolder) -> str:
    last = folder.newest()
    found = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return f"{found}; try a lower --learning_rate, or --precision fp32"


@dataclass(frozen=True)
class Keeper:
    """Scores and saves a trainee at its moments."""

    trainee: Trainee
    folder: CheckpointFolder
    validation: Sequence[Sample]
    settings: RunSettings
    device: torch.device
    average: WeightAverage | None
    monitor: Monitor

    def keep(self, moment: Moment, history: list, state_at: Callable[..., dict], stop: StopRequest) -> None:
        """Score, write down, save; after a signal only save, and leave (SystemExit).

        The best weights come before the checkpoint: a run that is killed between the two makes both again.

        Raises:
            FloatingPointError: a weight is no number; nothing is written.
        """
        synchronise(self.trainee.model)
        require_finite_weights(self.trainee.model, moment.position.step)
        scores = None if moment.stopped else self.score(moment, history, stop)
        position = moment.position.scored() if scores else moment.position
        state = state_at(position, history)
        path = self.folder.name_of(position)
        if is_writer():
            save_trainee(path, self.trainee, scores or {}, self.settings, state)
            self.folder.keep_last(self.settings.records.keep_checkpoints)
        if not scores:
            logger.info("stopped after step %d, wrote %s; go on with --resume auto", position.step, path)
            sys.exit(EXIT_CODES[stop.signal or signal.SIGTERM])

    def score(self, moment: Moment, history: list, stop: StopRequest) -> Scores | None:
        """Score the model, with averaged weights where there are any, and write down how it stands; None if stopped."""
        model, input_hw = self.trainee.model, self.trainee.description.input_hw
        with self.average.applied() if self.average else nullcontext():
            self.trainee.eval_mode()
            work = partial(scores_of, self.trainee, self.validation, self.settings, self.device)
            scores = (
                stop.unless_stopped(work) if world_size() == 1 else work()
            )  # the ranks score together or not at all
            if scores is None:
                return None
            history.append(entry(moment, scores))
            if is_writer():
                self.monitor.record(history, moment, scores)
                predict = TorchPredictor(model, self.device)
                self.monitor.draw(predict, self.validation, input_hw, moment.position.step)
                if history[-1]["miou"] >= max(past["miou"] for past in history):
                    save_trainee(self.folder.path / self.trainee.best, self.trainee, scores, self.settings)
        return scores


def scores_of(trainee: Trainee, samples: Sequence[Sample], settings: RunSettings, device: torch.device) -> Scores:
    """Score a trainee, which the caller has put into evaluation mode, as the settings of its run say."""
    return validate(
        trainee.model,
        device,
        samples,
        trainee.description.input_hw,
        batch_size=settings.training.batch_size,
        workers=settings.data.workers,
        load=sample_loader(settings.data.cache_dir),
    )


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise FloatingPointError where a parameter holds NaN or infinity: the loss tells only a step later."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise FloatingPointError(f"step {step}: the weight {name} is no longer a number")


def save_trainee(
    path: Path, trainee: Trainee, scores: Scores, settings: RunSettings, training: dict[str, Any] | None = None
) -> None:
    """Write the model as it stands, with what it scored; `training` is for a checkpoint to resume from."""
    described = replace(trainee.description, metrics=scores, arguments=flat(settings), versions=versions())
    save_checkpoint(path, trainee.state(), described, training)
