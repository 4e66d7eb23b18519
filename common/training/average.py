"""Averaged weights: an exponential moving average over the steps (EMA), on PyTorch's AveragedModel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

STATISTICS = ("running_mean", "running_var")  # of batch norm


class _Averaged(nn.Module):
    """What is averaged of a model, the very tensors: its trained parameters, and batch norm's statistics.

    Not the model itself: AveragedModel would average every buffer, also the ranges of fake quantization, which are
    moving averages already and may be without size or infinite before the first image.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(STATISTICS):
                self.register_buffer(name.replace(".", "/"), buffer)


@torch.no_grad()
def _move(decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
    """Early on the decay is smaller, n / (9 + n) in the n-th step, so that the average does not stay at the start."""
    steps = int(updates)
    torch._foreach_lerp_(list(averages), list(values), 1 - min(decay, steps / (9 + steps)))


class WeightAverage(AveragedModel):
    """An exponential moving average of a model's trained parameters and batch-norm statistics over the steps.

    Args:
        model: its tensors have to stay the same, with changing values.
        decay: of the average in a step, below 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        averaged = _Averaged(model)
        super().__init__(averaged, multi_avg_fn=partial(_move, decay), use_buffers=True)
        self.averaged = [*averaged.parameters(), *averaged.buffers()]
        self.source = [averaged]  # in a list: it is no part of this module's own state
        self.update()  # counts the values at the start

    @property
    def averages(self) -> list[Tensor]:
        """The averages in the order of `averaged`."""
        return [*self.module.parameters(), *self.module.buffers()]

    def update(self) -> None:
        """Take the present values into the average."""
        self.update_parameters(self.source[0])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages within this context."""
        present = [value.detach().clone() for value in self.averaged]
        self.apply_for_good()
        try:
            yield
        finally:
            _copy(present, self.averaged)

    def apply_for_good(self) -> None:
        """Give the model the averages."""
        _copy(self.averages, self.averaged)


@torch.no_grad()
def _copy(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
