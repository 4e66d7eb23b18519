"""A whole run: train, score at every moment, keep checkpoints, the best weights and the record, stop in order."""

import argparse
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

from common.cli.flags import plain_arguments
from common.data.bad_samples import record_bad
from common.data.cache import open_cache, sample_loader
from common.data.datasets import AugmentedDataset, Sample
from common.data.pairs import BadSample
from common.networks.checkpoints import Checkpoint, Description, StateDict, save_checkpoint
from common.runtimes.predictors import TorchPredictor
from common.system.distributed import is_writer, parallel, rank, synchronise, world_size
from common.system.environment import versions
from common.system.files import remove_leftovers, require_writable
from common.system.lock import hold_folder
from common.system.signals import EXIT_CODES, StopRequest
from common.training.display import Moment
from common.training.loop import Learner, make_optimizer, train
from common.training.monitor import Monitor, entry
from common.training.precision import keep_fake_quantization_in_float32, set_precision
from common.training.resume import CheckpointFolder, fixed_settings, restore_training_state, training_state
from common.training.schedule import WeightAverage
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
    teacher: nn.Module | None = None


def open_folder(args: argparse.Namespace, prefix: str, bad: Sequence[BadSample] = ()) -> CheckpointFolder:
    """The folder of the run's checkpoints, made where it is missing, without what killed writers left there.

    The samples `bad`, which the run leaves out, are listed in it.

    Raises:
        ValueError: another run holds it.
        OSError: it cannot be made or written to.
    """
    path = args.model_save_root_path
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
    args: argparse.Namespace,
    device: torch.device,
    resumed: Checkpoint | None,
) -> None:
    """Train to the end, from the start or from where `resumed` stands; the model then has its final weights.

    Raises:
        SystemExit: a signal stopped the run; its checkpoint is written, the code says which signal it was.
        ValueError: the loss is no longer a number, or `resumed` is of another run.
    """
    input_hw = trainee.description.input_hw
    set_precision(args.precision, device)
    keep_fake_quantization_in_float32(trainee.model)
    optimizer = make_optimizer(trainee.model, args)
    average = WeightAverage(trainee.model, args.ema) if args.ema else None
    fixed = fixed_settings(args, training, input_hw)
    start, history = Position(), []
    if resumed:
        start, history = restore_training_state(resumed.training, resumed.path, optimizer, average, fixed)
    else:
        torch.manual_seed(args.seed + rank())  # dropout differs between the ranks
    if args.cache_dir:
        open_cache(args.cache_dir)
    load = sample_loader(args.cache_dir, reduced=args.reduced_decode)
    dataset = AugmentedDataset(training, input_hw, args.augmentation, args.seed, load)
    keeper = Keeper(trainee, folder, validation, args, device, average, Monitor(folder.path, args, start.step))
    with StopRequest().listening() as stop:
        model = parallel(trainee.model, device)
        learner = Learner(model, optimizer, trainee.train_mode, trainee.teacher, average, stop)
        state_at = partial(training_state, optimizer, average, fixed)
        try:
            for moment in train(learner, dataset, args, device, start):
                keeper.keep(moment, history, state_at, stop)
        except FloatingPointError as error:
            raise ValueError(f"{error}; {_how_to_go_on(folder)}") from error
    if average:
        average.apply()


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
    args: argparse.Namespace
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
            save_trainee(path, self.trainee, scores or {}, self.args, state)
            self.folder.keep_last(self.args.keep_checkpoints)
        if not scores:
            logger.info("stopped after step %d, wrote %s; go on with --resume auto", position.step, path)
            sys.exit(EXIT_CODES[stop.signal or signal.SIGTERM])

    def score(self, moment: Moment, history: list, stop: StopRequest) -> Scores | None:
        """Score the model, with averaged weights where there are any, and write down how it stands; None if stopped."""
        model, input_hw = self.trainee.model, self.trainee.description.input_hw
        load = sample_loader(self.args.cache_dir)
        with self.average.applied() if self.average else nullcontext():
            self.trainee.eval_mode()
            work = partial(validate, model, self.device, self.validation, input_hw, self.args, load)
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
                    save_trainee(self.folder.path / self.trainee.best, self.trainee, scores, self.args)
        return scores


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise FloatingPointError where a parameter holds NaN or infinity: the loss tells only a step later."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise FloatingPointError(f"step {step}: the weight {name} is no longer a number")


def save_trainee(
    path: Path, trainee: Trainee, scores: Scores, args: argparse.Namespace, training: dict[str, Any] | None = None
) -> None:
    """Write the model as it stands, with what it scored; `training` is for a checkpoint to resume from."""
    arguments = plain_arguments(args)
    described = replace(trainee.description, metrics=scores, arguments=arguments, versions=versions())
    save_checkpoint(path, trainee.state(), described, training)
