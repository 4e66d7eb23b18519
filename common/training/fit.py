"""A whole run: train, score at every moment, keep checkpoints, the best weights and the record, stop in order."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from common.data.bad_samples import record_bad
from common.data.cache import open_cache
from common.data.pairs import BadSample
from common.networks.checkpoints import Checkpoint, Description, StateDict, read_checkpoint, save_checkpoint
from common.system.distributed import gathered, is_writer, make_equal, rank, synchronise, world_size
from common.system.environment import versions
from common.system.files import remove_leftovers, require_writable
from common.system.lock import hold_folder
from common.system.settings import flat
from common.system.signals import EXIT_CODES
from common.training.accumulation import Accumulation
from common.training.average import WeightAverage
from common.training.loop import Moment, train
from common.training.monitor import Monitor, entry
from common.training.precision import keep_fake_quantization_in_float32, set_precision
from common.training.resume import (
    CheckpointFolder,
    fixed_settings,
    restore_training_state,
    stored_parts,
    training_state,
)
from common.training.settings import RunSettings, TrainingSettings
from common.training.stepper import Learner, make_optimizer
from common.training.steps import Position
from common.training.task import TOGETHER, Scores, Task, read_best

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=RunSettings)


@dataclass(frozen=True)
class Trainee:
    """A model with what a run has to know of it."""

    model: nn.Module
    description: Description
    train_mode: Callable[[int], None]  # of an epoch
    eval_mode: Callable[[], object]
    state: Callable[[], StateDict]  # what a checkpoint saves
    best: str  # file of the weights with the best score


MakeTask = Callable[[Trainee, Checkpoint | None, torch.device], Task]  # also of the checkpoint that is resumed from


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
    task: Task,
    folder: CheckpointFolder,
    settings: Settings,
    device: torch.device,
    resumed: Checkpoint | None = None,
) -> Settings:
    """Train to the end, from the start or from where `resumed` stands; the model then has its final weights.

    `trainee.model` is on `device`, and has the weights of `resumed`. Returns the settings, with the number of parts in
    which steps were computed where they left it open.

    Raises:
        SystemExit: a signal stopped the run; its checkpoint is written, the code says which signal it was.
        ValueError: the loss is no longer a number, or `resumed` is of another run.
    """
    accumulation = Accumulation.by(settings.training.gradient_accumulation, stored_parts(resumed) if resumed else None)
    settings = with_parts(settings, accumulation)
    recipe, data = settings.training, settings.data
    set_precision(recipe.precision, device)
    learner = make_learner(trainee, task, recipe, accumulation)
    fixed = fixed_settings(settings, task.identity(), trainee.description.input_hw)
    start = Position()
    history: list[dict[str, Any]] = []
    if resumed:
        start, history = restore_training_state(
            resumed, learner.optimizer, learner.average, fixed, device, task.best_by
        )
    else:
        torch.manual_seed(recipe.seed + rank())  # dropout differs between the ranks
    if data.cache_dir:
        open_cache(data.cache_dir)
    dataset, monitor = task.dataset(settings), _monitor(settings, folder, start)
    keeper = Keeper(trainee, task, learner, folder, settings, fixed, device, monitor, history)
    interval, workers = settings.records.checkpoint_interval, data.workers
    with learner.stop.listening():
        try:
            if task.starts_in_int8 and not resumed:
                keeper.begin()
            for moment in train(learner, dataset, recipe, device, start, checkpoint_interval=interval, workers=workers):
                keeper.keep(moment)
        except FloatingPointError as error:
            raise ValueError(f"{error}; {_how_to_go_on(folder)}") from error
    if learner.average:
        learner.average.apply_for_good()
    return with_parts(settings, accumulation)


def make_learner(trainee: Trainee, task: Task, recipe: TrainingSettings, accumulation: Accumulation) -> Learner:
    """The trainee with optimizer, loss, the average of its weights where one is kept, and nothing to stop it yet."""
    keep_fake_quantization_in_float32(trainee.model)
    make_equal(trainee.model)
    return Learner(
        trainee.model,
        make_optimizer(trainee.model, recipe),
        trainee.train_mode,
        task.loss(recipe),
        average=WeightAverage(trainee.model, recipe.ema) if recipe.ema else None,
        accumulation=accumulation,
    )


def with_parts(settings: Settings, accumulation: Accumulation) -> Settings:
    """The settings with the number of parts in which steps are computed, once it is known."""
    if accumulation.parts is None:
        return settings
    return replace(settings, training=replace(settings.training, gradient_accumulation=accumulation.parts))


def _monitor(settings: RunSettings, folder: CheckpointFolder, start: Position) -> Monitor:
    """Every process has one, and one of them writes."""
    records = settings.records
    tensorboard = records.tensorboard and is_writer()
    return Monitor(folder.path, tensorboard=tensorboard, start_step=start.step)


def _how_to_go_on(folder: CheckpointFolder) -> str:
    last = folder.newest()
    found = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return f"{found}; try a lower --learning_rate, or --precision fp32"


@dataclass(frozen=True)
class Keeper:
    """Scores and saves a trainee at its moments."""

    trainee: Trainee
    task: Task
    learner: Learner
    folder: CheckpointFolder
    settings: RunSettings
    fixed: dict[str, Any]  # see `fixed_settings`
    device: torch.device
    monitor: Monitor
    history: list[dict[str, Any]]

    def begin(self) -> None:
        """Score and save what the run starts from, as its best so far."""
        trainee, task = self.trainee, self.task
        trainee.eval_mode()
        scores = task.score(trainee.model, self.settings)
        self.history.append({"epoch": 0, "step": 0, **scores[TOGETHER]})
        logger.info("before the first step: %s", task.sentence(scores))
        if is_writer():
            save_trainee(self.folder.path / trainee.best, trainee, scores, self.settings)

    def keep(self, moment: Moment) -> None:
        """Score, write down, save; after a signal only save, and leave (SystemExit).

        The best weights come before the checkpoint: a run that is killed between the two makes both again.

        Raises:
            FloatingPointError: a weight is no number; nothing is written.
        """
        learner, settings = self.learner, with_parts(self.settings, self.learner.accumulation)
        for module in filter(None, (learner.model, learner.average)):
            synchronise(module)
        require_finite_weights(learner.model, moment.position.step)
        scores = None if moment.stopped else self.score(moment, settings)
        position = moment.position.scored() if scores else moment.position
        fixed = {**self.fixed, "gradient_accumulation": settings.training.gradient_accumulation}
        state = training_state(learner.optimizer, learner.average, fixed, position, self.history, self.device)
        path = self.folder.name_of(position)
        if is_writer():
            save_trainee(path, self.trainee, scores or {}, settings, state)
            self.folder.keep_last(settings.records.keep_checkpoints)
        if not scores:
            logger.info("stopped after step %d, wrote %s; go on with --resume auto", position.step, path)
            sys.exit(EXIT_CODES[learner.stop.signal or signal.SIGTERM])

    def score(self, moment: Moment, settings: RunSettings) -> Scores | None:
        """Score the model, with averaged weights where there are any, and write down how it stands; None if stopped."""
        trainee, task, average = self.trainee, self.task, self.learner.average
        with average.applied() if average else nullcontext():
            trainee.eval_mode()
            work = partial(task.score, trainee.model, settings)
            scores = (
                self.learner.stop.unless_stopped(work) if world_size() == 1 else work()
            )  # the ranks score together or not at all
            if scores is None:
                return None
            self.history.append(entry(moment, scores))
            if is_writer():
                self.monitor.record(self.history, moment, task.sentence(scores))
                if pictures := settings.records.validation_pictures:
                    task.draw(trainee.model, self.folder.path, pictures, moment.position.step)
                if self.history[-1][task.best_by] >= read_best(self.history, task):
                    save_trainee(self.folder.path / trainee.best, trainee, scores, settings)
        return scores


def better_of(trainee: Trainee, task: Task, folder: CheckpointFolder, scores: Scores) -> Scores:
    """Give the model the best weights of the run where those at its end, which have `scores`, are not as good.

    Only for a task that can get worse, whose images of judging decide nothing else. Returns the scores of what it has.
    """
    path = folder.path / trainee.best
    best: Scores | None = None
    if task.can_get_worse and is_writer() and path.exists():  # a run that went on in another folder has none
        checkpoint = read_checkpoint(path)
        found: Scores = checkpoint.description.metrics if checkpoint.description else {}
        if found[TOGETHER][task.best_by] > scores[TOGETHER][task.best_by]:
            best = found
            trainee.model.load_state_dict(checkpoint.state)
            logger.info("the end of the run is not its best: %s has %s and is taken", path, task.sentence(found))
    best = gathered(best)[0]
    if best:
        make_equal(trainee.model)
    return best or scores


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
