"""The training loop that FP32 training and quantization-aware training share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from common.data.datasets import Example
from common.system.allocator import keep_freed_memory
from common.system.distributed import share_counts, sum_gradients, summed, world_size
from common.system.failures import is_out_of_memory
from common.system.signals import StopRequest
from common.training.accumulation import Accumulation, StepState, fitting_parts, release
from common.training.average import WeightAverage
from common.training.display import Display, Pace
from common.training.losses import distillation, unweighted_cross_entropy, weighted_cross_entropy
from common.training.precision import arithmetic
from common.training.schedule import learning_rate
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
    accumulation: Accumulation = field(default_factory=lambda: Accumulation(1))
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
    `learner.stop` the step is finished and the last moment handed over. `learner.accumulation` gets its parts with the
    first step where it has none, and more where it adapts and memory runs out.

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
    full_share = -(-min(plan.batch_size, plan.epoch_length) // world_size())
    for step, batch in steps:
        if resumed:
            learner.set_mode(step.epoch)
            display.start(step)
        if learner.accumulation.parts is None:
            loss_of = partial(part_loss, learner, settings, device)
            learner.accumulation.parts = fitting_parts(
                loss_of, learner.model, batch, full_share, steps.batches_ahead, device
            )
        rate = learning_rate(settings, position.step, plan.total_steps)
        loss, stopped = take_step(learner, step, batch, rate, settings, device, full_share)
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
    learner: Learner,
    step: Step,
    batch: Example,
    rate: float,
    settings: TrainingSettings,
    device: torch.device,
    full_share: int,
) -> tuple[float, bool]:
    """One optimizer step over all ranks; the mean loss, and whether any rank is to stop.

    Where memory runs out on any rank and the accumulation adapts, all ranks compute the step again in more parts, from
    the same state.

    Args:
        batch: this rank's images of the step.
        full_share: images of a full step that are a rank's.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    loss, stopped, error = _compute_gradients(learner, step, batch, settings, device)
    while error:
        if not learner.accumulation.divide(full_share):
            raise error
        loss, stopped, error = _compute_gradients(learner, step, batch, settings, device)
    sum_gradients(learner.model)
    learner.optimizer.step()
    if learner.average:
        learner.average.update()
    return loss, stopped


def _compute_gradients(
    learner: Learner, step: Step, batch: Example, settings: TrainingSettings, device: torch.device
) -> tuple[float, bool, BaseException | None]:
    """This rank's gradients of a step; the mean loss over all ranks, whether any is to stop, and what memory some lack.

    Where the accumulation adapts, a want of memory is returned instead of raised, on all ranks, and leaves the state
    as it was.
    """
    before = StepState(learner.model, device) if learner.accumulation.adapts else None
    learner.optimizer.zero_grad(set_to_none=True)
    own_loss, error = 0.0, None
    try:
        own_loss = _add_up_gradients(learner, step, batch, settings, device)
    except (MemoryError, RuntimeError) as caught:
        if before is None or not is_out_of_memory(caught):
            raise
        error = caught.with_traceback(None)  # its frames hold what was computed so far
    sums = torch.tensor([own_loss, learner.stop.signal is not None, error is not None], dtype=torch.float64)
    loss, stops, failures = summed(sums.to(device)).tolist()
    if failures and before:
        learner.optimizer.zero_grad(set_to_none=True)
        release(device)
        before.restore()
        error = error or MemoryError("another process of the run is out of memory")
    return loss, stops > 0, error


def _add_up_gradients(
    learner: Learner, step: Step, batch: Example, settings: TrainingSettings, device: torch.device
) -> float:
    """Compute the parts of this rank's share one after the other; returns its part of the mean loss."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for part, weight in in_parts(batch, step.count, learner.accumulation.parts or 1):
        loss = weight * part_loss(learner, settings, device, learner.model, part)
        loss.backward()
        total += loss.detach()
    return total.item()


def in_parts(batch: Example, count: int, parts: int) -> Iterator[tuple[Example, float]]:
    """This rank's images of a step of `count` images in at most so many parts, and the weight of each part.

    The weighted sum of the parts' mean losses over all ranks is the mean over the step's images.
    """
    own = len(batch.image)
    parts = min(parts, own)
    for part in range(parts):
        piece = Example(*(each[part::parts] for each in batch))
        yield piece, len(piece.image) / count if share_counts(count) else 0.0


def part_loss(
    learner: Learner, settings: TrainingSettings, device: torch.device, model: nn.Module, part: Example
) -> Tensor:
    """The mean loss of `model` on images, which are on the CPU, with the share of it that comes from the teacher."""
    images = part.image.to(device, memory_format=torch.channels_last, non_blocking=True)
    target, class_weights = (each.to(device, non_blocking=True) for each in part[1:])
    loss_function = unweighted_cross_entropy if settings.unweighted_loss else weighted_cross_entropy
    with arithmetic(settings.precision, device):
        logits = model(images).float()
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
