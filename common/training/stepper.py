"""One optimizer step: its gradients in parts and over all processes, again in more parts where memory runs out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from common.system.distributed import share_counts, sum_gradients, summed, world_size
from common.system.failures import is_out_of_memory
from common.system.signals import StopRequest
from common.training.accumulation import Accumulation, StepState, fitting_parts, release
from common.training.average import WeightAverage
from common.training.settings import TrainingSettings
from common.training.steps import Plan, Step
from common.training.task import Batch, LossOf


@dataclass(frozen=True)
class Learner:
    """What a step changes, and how."""

    model: nn.Module
    optimizer: Optimizer
    set_mode: Callable[[int], object]  # puts the model into the training mode of an epoch
    loss: LossOf  # of the model, or of a copy of it
    average: WeightAverage | None = None
    accumulation: Accumulation = field(default_factory=lambda: Accumulation(1))
    stop: StopRequest = field(default_factory=StopRequest)


class Stepper:
    """Takes the steps of a plan."""

    def __init__(self, learner: Learner, plan: Plan, device: torch.device):
        self.learner, self.device = learner, device
        self.full_share = -(-min(plan.batch_size, plan.epoch_length) // world_size())  # images of a rank
        self.state = StepState(learner.model, device) if learner.accumulation.adapts else None

    def choose_parts(self, batch: Batch, batches_ahead: int) -> None:
        """Choose the number of parts by the memory that is free, and that a step on `batch` takes.

        The model is in the mode of the first step; nothing of it changes.
        """
        parts = fitting_parts(self.learner.loss, self.learner.model, batch, self.full_share, batches_ahead, self.device)
        self.learner.accumulation.parts = parts

    def take(self, step: Step, batch: Batch, rate: float) -> tuple[float, bool]:
        """One optimizer step over all ranks; the mean loss, and whether any rank is to stop.

        Where memory runs out on any rank and the accumulation adapts, all ranks compute the step again in more parts,
        from the same state.

        Args:
            batch: this rank's images of the step, on the CPU.
            rate: the learning rate.
        """
        learner = self.learner
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        if self.state:
            self.state.take()
        loss, stopped, error = self._compute_gradients(step, batch)
        while error:
            if not learner.accumulation.divide(self.full_share):
                raise error
            loss, stopped, error = self._compute_gradients(step, batch)
        sum_gradients(learner.model)
        learner.optimizer.step()
        if learner.average:
            learner.average.update()
        return loss, stopped

    def _compute_gradients(self, step: Step, batch: Batch) -> tuple[float, bool, BaseException | None]:
        """This rank's gradients; the mean loss over all ranks, whether any is to stop, and what memory any lacked.

        Where the accumulation adapts, a want of memory is returned instead of raised, on all ranks, and the state is
        that from before.
        """
        own_loss, error = 0.0, None
        try:
            own_loss = self._add_up_gradients(step, batch)
        except (MemoryError, RuntimeError) as caught:
            if not (self.state and is_out_of_memory(caught)):
                raise
            error = caught.with_traceback(None)  # its frames hold what was computed so far
        sums = torch.tensor([own_loss, self.learner.stop.signal is not None, error is not None], dtype=torch.float64)
        loss, stops, failures = summed(sums.to(self.device)).tolist()
        if self.state and failures:
            self.learner.optimizer.zero_grad(set_to_none=True)
            release(self.device)
            self.state.restore()
            error = error or MemoryError("another process of the run is out of memory")
        return loss, stops > 0, error

    def _add_up_gradients(self, step: Step, batch: Batch) -> float:
        """Compute the parts of this rank's share one after the other; returns its part of the mean loss."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part, weight in in_parts(batch, step.images, self.learner.accumulation.parts or 1):
            loss = weight * self.learner.loss(self.learner.model, part)
            loss.backward()
            total += loss.detach()
        return total.item()


def in_parts(batch: Batch, count: int, parts: int) -> Iterator[tuple[Batch, float]]:
    """This rank's images of a step of `count` images in at most so many parts, and the weight of each part.

    The weighted sum of the parts' mean losses over all ranks is the mean over the step's images.
    """
    own = len(batch[0])
    parts = min(parts, own)
    for part in range(parts):
        piece = tuple(each[part::parts] for each in batch)
        yield piece, len(piece[0]) / count if share_counts(count) else 0.0


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
