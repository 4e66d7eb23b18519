"""What changes from step to step beside the weights: the learning rate, and the average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.training.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, total_steps: int) -> float:
    """The learning rate of a step, from 0: a linear rise over `warmup_steps`, then constant or half a cosine down to 0.

    The last step of the cosine is one before the end, so that it still learns.
    """
    highest, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return highest
    passed = (step - warmup) / max(total_steps - warmup, 1)
    return highest * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))


class WeightAverage:
    """An exponential moving average of a model's parameters over the steps (EMA).

    Early on the decay is smaller, (1 + n) / (10 + n) after n steps, so that the average does not stay at the start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.decay, self.updates = decay, 0
        self.averages = {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights within this context."""
        trained = {name: each.detach().clone() for name, each in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(trained)

    def apply(self) -> None:
        """Give the model the averaged weights for good."""
        self._fill(self.averages)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs."""
        return {"updates": self.updates, "averages": {name: each.clone() for name, each in self.averages.items()}}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict()`; ValueError where it is that of another model."""
        if state["averages"].keys() != self.averages.keys():
            raise ValueError("averages of another model's weights")
        self.updates = state["updates"]
        for name, value in state["averages"].items():
            self.averages[name].copy_(value)
