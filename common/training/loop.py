"""The training loop that FP32 training and quantization-aware training share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from common.data.datasets import Example
from common.system.allocator import keep_freed_memory
from common.system.distributed import share_counts, sum_gradients, summed
from common.system.signals import StopRequest
from common.training.display import Display, Pace
from common.training.losses import distillation, unweighted_cross_entropy, weighted_cross_entropy
from common.training.precision import arithmetic
from common.training.schedule import WeightAverage, learning_rate
from common.training.settings import TrainingSettings
from common.training.steps import LoadedSteps, Plan, Position, Step


@dataclass(frozen=True)
class Learner:
    """What a step changes, and how."""

    model: nn.Module  # computes the logits
    optimizer: Optimizer
    set_mode: Callable[[int], object]  # puts the model into the training mode of an epoch
    teacher: nn.Module | None = None  # whose logits are learned, too
    distill: float = 0.0  # with this weight in the loss
    average: WeightAverage | None = None
    stop: StopRequest = field(default_factory=StopRequest)


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
    `learner.stop` the step is finished and the last moment handed over.

    Args:
        dataset: gives an `Example` for an epoch and an index, as `AugmentedDataset`.
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
    for step, batch in steps:
        if resumed:
            learner.set_mode(step.epoch)
            display.start(step)
        rate = learning_rate(settings, position.step, plan.total_steps)
        loss, stopped = take_step(learner, step, batch, rate, settings, device)
        position = position.after(step, loss, plan.epoch_length, checkpoint_interval)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {position.step}: the loss is {loss}")
        display.update(step, loss, rate)
        if resumed := position.due or stopped:
            yield Moment(position, display.stop(), stopped)
            position = position.scored()
        if stopped:
            return


def take_step(
    learner: Learner, step: Step, batch: Example, rate: float, settings: TrainingSettings, device: torch.device
) -> tuple[float, bool]:
    """One optimizer step over all ranks; the mean loss, and whether any rank is to stop.

    `batch` holds this rank's images of the step.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for part, weight in in_parts(batch, step.count, settings.gradient_accumulation):
        loss = weight * part_loss(learner, part, settings, device)
        loss.backward()
        sums[0] += loss.detach()
    sum_gradients(learner.model)
    learner.optimizer.step()
    if learner.average:
        learner.average.update()
    sums[1] = learner.stop.signal is not None
    loss, stops = summed(sums).tolist()
    return loss, stops > 0


def in_parts(batch: Example, count: int, parts: int) -> Iterator[tuple[Example, float]]:
    """This rank's images of a step of `count` images in at most so many parts, and the weight of each part.

    The weighted sum of the parts' mean losses over all ranks is the mean over the step's images.
    """
    own = len(batch.image)
    parts = min(parts, own)
    for part in range(parts):
        piece = Example(*(each[part::parts] for each in batch))
        yield piece, len(piece.image) / count if share_counts(count) else 0.0


def part_loss(learner: Learner, part: Example, settings: TrainingSettings, device: torch.device) -> Tensor:
    """The mean loss of images on the CPU, with the share of it that comes from the teacher."""
    images = part.image.to(device, memory_format=torch.channels_last, non_blocking=True)
    target, class_weights = (each.to(device, non_blocking=True) for each in part[1:])
    loss_function = unweighted_cross_entropy if settings.unweighted_loss else weighted_cross_entropy
    with arithmetic(settings.precision, device):
        logits = learner.model(images).float()
        loss = loss_function(logits, target, class_weights)
        if learner.teacher is not None:
            with torch.no_grad():
                teacher_logits = learner.teacher(images).float()
            loss = loss + learner.distill * distillation(logits, teacher_logits)
    return loss


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
