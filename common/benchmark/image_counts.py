"""How far a candidate is from the network in float, image by image, and the figure of a limit with its interval."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from common.benchmark.float_choice import MAX_MIOU_DROP, FloatLimit
from common.data.classes import Classes
from common.quantization.simulation import Simulation
from common.runtimes.agreement import MOST_DECIBELS
from common.scoring.metrics import confusion_of, miou_of
from common.scoring.statistics import Interval, difference_intervals, figure_intervals

Outputs = Callable[[Tensor], Sequence[Tensor]]  # an input (1, C, H, W) -> the network's outputs, on the CPU
ERRORS_OF_INTERVAL = 2 * 1.96  # standard errors between the ends of a 95 % interval


@dataclass(frozen=True)
class LabelledInput:
    """An input (1, C, H, W), and class ids (1, H, W) where there are labels; `dataset` is the images' folder."""

    image: Tensor
    mask: Tensor | None
    dataset: str


@dataclass(frozen=True)
class Counts:
    """Of N images: sums of squares of O outputs and of their differences; confusion matrices where there are labels.

    Attributes:
        signal, noise: (N, O).
        reference, candidate: (N, C, C) of FP32 and of the candidate.
        strata: the dataset of each image.
    """

    signal: np.ndarray
    noise: np.ndarray
    reference: np.ndarray | None
    candidate: np.ndarray | None
    strata: list[str]

    def part(self, indices: Sequence[int]) -> "Counts":
        """Those of some of the images."""
        chosen = list(indices)
        one, other = (None if each is None else each[chosen] for each in (self.reference, self.candidate))
        return Counts(self.signal[chosen], self.noise[chosen], one, other, [self.strata[index] for index in chosen])

    @property
    def sqnr_db(self) -> float:
        """The least of the outputs; infinite without noise, -infinite without signal."""
        return float(self._sqnr(np.ones((1, len(self.signal))))[0, 0])

    def _sqnr(self, draws: np.ndarray) -> np.ndarray:
        """How often each image counts (R, N) -> (R, 1), dB."""
        signal, noise = draws @ self.signal, draws @ self.noise
        with np.errstate(divide="ignore", invalid="ignore"):
            decibels = 10 * np.log10(signal / noise)
        return np.where(noise == 0, np.inf, decibels).min(axis=1, keepdims=True)

    def _decibels(self, draws: np.ndarray) -> np.ndarray:
        return np.clip(self._sqnr(draws), -MOST_DECIBELS, MOST_DECIBELS)

    @property
    def miou(self) -> float | None:
        """Of the candidate, over the classes that occur."""
        return None if self.candidate is None else miou_of(self.candidate)

    @property
    def miou_fp32(self) -> float | None:
        """Of the FP32 network."""
        return None if self.reference is None else miou_of(self.reference)

    def figure(self, limit: FloatLimit, seed: int) -> Interval:
        """What `limit` is of, with its 95 % interval by the paired bootstrap over images."""
        if limit.name != MAX_MIOU_DROP:
            return figure_intervals(self._decibels, np.array([len(self.signal)]), self.strata, seed)[0]
        assert self.reference is not None and self.candidate is not None
        change = difference_intervals(self.reference, self.candidate, self.strata, seed)[0]
        low, high = (None if end is None else 0 - end for end in (change.high, change.low))
        return Interval(0 - change.value, low, high)


def standard_error(interval: Interval) -> float:
    """Of the figure; infinite where there are too few images to say."""
    return np.inf if interval.ends is None else (interval.ends[1] - interval.ends[0]) / ERRORS_OF_INTERVAL


def outputs_with(prepared: GraphModule, floats: Collection[str], device: torch.device) -> Outputs:
    """What a prepared graph on `device` gives with the fake quantizations in `floats` passed over."""
    simulation = Simulation(prepared, floats)

    def outputs(image: Tensor) -> list[Tensor]:
        result = simulation.run(image.to(device))
        return [output.cpu() for output in (result if isinstance(result, tuple | list) else (result,))]

    return outputs


@torch.inference_mode()
def outputs_of(reference: Outputs, inputs: Iterable[LabelledInput]) -> Iterator[Sequence[Tensor]]:
    """What `count` takes of the network in float, one input after the other."""
    for each in inputs:
        yield reference(each.image)


@torch.inference_mode()
def count(
    reference: Iterable[Sequence[Tensor]],
    candidate: Outputs,
    inputs: Iterable[LabelledInput],
    classes: Classes | None = None,
) -> Counts:
    """Compare a candidate with what the network in float gives of every input.

    `classes` are those of the first output's map, where there are labels.
    """
    signal, noise, confusions, strata = [], [], [], []
    for example, exact in zip(inputs, reference, strict=True):
        actual = candidate(example.image)
        pairs = [(one.double(), other.double()) for one, other in zip(exact, actual, strict=True)]
        signal.append([one.square().sum().item() for one, _ in pairs])
        noise.append([(other - one).square().sum().item() for one, other in pairs])
        if classes is not None and example.mask is not None:
            confusions.append([confusion_of(outputs[0], example.mask, classes) for outputs in (exact, actual)])
        strata.append(example.dataset)
    before, after = (np.array([pair[place] for pair in confusions]) if confusions else None for place in (0, 1))
    return Counts(np.array(signal), np.array(noise), before, after, strata)
