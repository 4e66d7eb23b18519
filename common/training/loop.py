"""The training loop that FP32 training and quantization-aware training share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from common.system.allocator import keep_freed_memory
from common.training.display import Display, Pace
from common.training.schedule import learning_rate
from common.training.settings import TrainingSettings
from common.training.stepper import Learner, Stepper
from common.training.steps import LoadedSteps, Plan, Position


@dataclass(frozen=True)
class Moment:
    """A point of the run at which a checkpoint is due: after `checkpoint_interval` images, and after an epoch.

    Also where a signal stops the run: then `stopped` is set, and `position.due` says whether a checkpoint was due.
    """

    position: Position  # from which a resumed run goes on
    pace: Pace  # since the last moment
    stopped: bool = False

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return self.position.loss_sum / max(self.position.loss_count, 1)


def train(
    learner: Learner,
    dataset: Dataset,
    settings: TrainingSettings,
    device: torch.device,
    start: Position = Position(),  # noqa: B008 - frozen
    *,
    checkpoint_interval: int,
    workers: int,
) -> Iterator[Moment]:
    """Train from `start` to the end of the last epoch; hand over at every moment a checkpoint is due.

    The mode is set anew after every moment, so that the caller may switch to evaluation in between. After a signal to
    `learner.stop` the step is finished and the last moment handed over. `learner.accumulation` gets its parts with the
    first step where it has none, and more where it adapts and memory runs out.

    Args:
        dataset: gives what a Batch is made of for an epoch and an index, as `Task.dataset`.
        checkpoint_interval: images between two moments within an epoch.
        workers: processes that load images.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    if device.type == "cpu":
        keep_freed_memory()
    plan = Plan.of(settings, len(dataset))  # type: ignore[arg-type]
    steps = LoadedSteps(dataset, plan, start, workers, device)
    display = Display(steps, plan.epoch_length, plan.epochs)
    if start.due:
        yield Moment(start, display.stop())
    position, resumed = (start.scored() if start.due else start), True
    stepper = Stepper(learner, plan, device)
    for step, batch in steps:
        if resumed:
            learner.set_mode(step.epoch)
            display.start(step)
        if learner.accumulation.parts is None:
            stepper.choose_parts(batch, steps.batches_ahead)
        rate = learning_rate(settings, position.step, plan.total_steps)
        loss, stopped = stepper.take(step, batch, rate)
        position = position.after(step, loss, plan.epoch_length, checkpoint_interval)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {position.step}: the loss is {loss}")
        display.update(step, loss, rate)
        if resumed := position.due or stopped:
            yield Moment(position, display.stop(), stopped)
            position = position.scored()
        if stopped:
            return
