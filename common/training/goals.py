"""What each output of a network is to come near to where the FP32 network teaches, and what a distance counts.

The loss is the sum over the outputs k of w_k D_k with w_k = 1 / D_k before the first step, so that every output counts
the same at the start, whatever its unit and size. D_k is `relative_error`; where one class of several holds, half of it
is that and half the KL divergence over the class axis (knowledge distillation, Hinton et al. 2015), each relative to
its start. The divergence alone lets the logits drift where the class is certain: on CamVid, ten steps brought 98.16 %
of equal pixels to 98.28, and the logits from 25.0 dB to 18.7.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.system.distributed import gathered
from common.training.losses import by_channel, distillation, relative_error
from models import Network

SMALLEST_DISTANCE = 1e-9  # at the start; an output that is exact already does not take all of the loss
SMALLEST_SHARE = 1e-7  # of the largest variance of a channel, that another one counts with

Outputs = Callable[[Tensor], tuple[Tensor, ...]]  # of inputs


@dataclass(frozen=True)
class Goal:
    """One output."""

    name: str
    kind: str  # one of models.network.OUTPUT_KINDS
    scales: tuple[float, ...]  # of squared differences, by channel: the variance of the teacher's output, or more
    error_weight: float  # of the relative error,
    divergence_weight: float = 0.0  # and of the KL divergence

    def distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """How far an output is from the teacher's, relative to the start; 0 or more, a scalar."""
        found = self.error_weight * relative_error(output, teacher, output.new_tensor(self.scales))
        if self.divergence_weight:
            found = found + self.divergence_weight * distillation(output, teacher)
        return found


def outputs_of(model: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """All outputs, in the network's order."""
    outputs = model(inputs)
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


@torch.no_grad()
def measure_goals(
    network: Network, teacher: nn.Module, student: nn.Module, batches: Iterable[Tensor]
) -> tuple[Goal, ...]:
    """The goals of a student before its first step; both models are in evaluation mode.

    Args:
        batches: inputs of the network, on its device, one at least.

    Raises:
        ValueError: an output of the teacher is the same everywhere, or no number.
    """
    measured = [_Measured() for _ in network.outputs or ()]
    kinds: list[str] = []
    for inputs in batches:
        expected, actual = outputs_of(teacher, inputs), outputs_of(student, inputs)
        kinds = network.kinds_of([output.shape for output in expected])
        for found, kind, one, other in zip(measured, kinds, actual, expected, strict=True):
            found.add(one.double(), other.double(), kind)
    goals = [each.goal(name, kind) for each, name, kind in zip(measured, network.outputs or (), kinds, strict=True)]
    return tuple(gathered(tuple(goals))[0])  # of the first process, for all


@dataclass
class _Measured:
    """Sums over batches of one output."""

    images: int = 0
    divergence: float = 0.0  # of classes, times images
    places: int = 0  # of a channel
    sums: Tensor | float = 0.0  # by channel, of the teacher's output,
    squares: Tensor | float = 0.0  # of its squares,
    errors: Tensor | float = 0.0  # and of the squared differences from it

    def add(self, output: Tensor, teacher: Tensor, kind: str) -> None:
        if kind == "classes":
            self.divergence += len(output) * distillation(output, teacher).item()
        values = by_channel(teacher)
        self.images, self.places = self.images + len(output), self.places + values[:, 0].numel()
        self.sums = self.sums + values.sum(dim=(0, 2)).cpu()
        self.squares = self.squares + values.square().sum(dim=(0, 2)).cpu()
        self.errors = self.errors + by_channel(output - teacher).square().sum(dim=(0, 2)).cpu()

    def goal(self, name: str, kind: str) -> Goal:
        sums, squares, errors = (torch.as_tensor(each) / self.places for each in (self.sums, self.squares, self.errors))
        variances = squares - sums.square()
        largest = variances.max().item()
        if not 0 < largest < float("inf"):
            reason = "is the same everywhere" if largest <= 0 else "is no number"
            raise ValueError(f"--images: the FP32 network's output {name} {reason}; there is nothing to learn from it")
        # a channel that INT8 has lost altogether counts once, and does not drown those that can be learned
        scales = torch.maximum(variances.clamp(min=SMALLEST_SHARE * largest), errors)
        error = max((errors / scales).mean().item(), SMALLEST_DISTANCE)
        if kind != "classes":
            return Goal(name, kind, tuple(scales.tolist()), 1 / error)
        divergence = max(self.divergence / self.images, SMALLEST_DISTANCE)
        return Goal(name, kind, tuple(scales.tolist()), 0.5 / error, 0.5 / divergence)


def as_records(goals: Sequence[Goal]) -> tuple[dict[str, Any], ...]:
    """For a checkpoint."""
    return tuple({**vars(goal)} for goal in goals)


def from_records(records: Iterable[Mapping[str, Any]]) -> tuple[Goal, ...]:
    """Raises TypeError or KeyError where they are not what `as_records` gives."""
    return tuple(Goal(**{**record, "scales": tuple(record["scales"])}) for record in records)
