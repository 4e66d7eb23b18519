"""How far outputs are from a reference's, counted image by image and divided once."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_DECIBELS = 200.0  # more than float32 tells apart


@dataclass(frozen=True)
class Agreement:
    """How far one output of a predictor is from the reference's, over all inputs."""

    largest_difference: float
    output_range: float  # largest minus smallest value of the reference's output
    sqnr_db: float  # signal-to-quantization-noise ratio: 10 log10(sum of reference^2 / sum of difference^2)
    equal_pixels: float | None  # share of places with the same class, 0..1, where the output tells classes apart

    @property
    def decibels(self) -> float:
        """`sqnr_db` as JSON has numbers: at most MOST_DECIBELS, also without any difference."""
        return max(-MOST_DECIBELS, min(self.sqnr_db, MOST_DECIBELS))

    @property
    def relative(self) -> float:
        """The largest difference as a share of the output range."""
        return self.largest_difference / self.output_range if self.output_range else self.largest_difference

    def __str__(self) -> str:
        pixels = "" if self.equal_pixels is None else f", {100 * self.equal_pixels:.3f} % of pixels equal"
        return (
            f"largest difference {self.largest_difference:.2e} ({self.relative:.1e} of the output range), "
            f"SQNR {self.sqnr_db:.1f} dB{pixels}"
        )


@dataclass
class OutputMeter:
    """Counts of one output, of any number of batches; `kind` is one of models.network.OUTPUT_KINDS."""

    kind: str
    signal: float = 0.0  # sum of reference^2
    noise: float = 0.0  # sum of difference^2
    equal: float = 0.0  # places at which both tell the same class
    places: float = 0.0
    largest_difference: float = 0.0
    smallest: float = math.inf  # of the reference
    largest: float = -math.inf

    def update(self, expected: Tensor, actual: Tensor) -> None:
        """Count one batch, (N, ...) both.

        Raises:
            ValueError: they differ in shape.
        """
        if expected.shape != actual.shape:
            raise ValueError(f"outputs differ in shape: {tuple(expected.shape)} and {tuple(actual.shape)}")
        reference = expected.double()
        difference = actual.double() - reference
        self.signal += reference.square().sum().item()
        self.noise += difference.square().sum().item()
        # nan where any value is nan; Python's max would lose it
        self.largest_difference = torch.tensor([self.largest_difference, difference.abs().max().item()]).max().item()
        self.smallest = min(self.smallest, reference.min().item())
        self.largest = max(self.largest, reference.max().item())
        if self.kind != "values":
            equal = decisions(expected, self.kind) == decisions(actual, self.kind)
            self.equal += equal.sum().item()
            self.places += equal.numel()

    def counts(self) -> list[float]:
        """What is added up over several meters."""
        return [self.signal, self.noise, self.equal, self.places]

    def agreement(self) -> Agreement:
        """What the counts come to."""
        return Agreement(
            largest_difference=self.largest_difference,
            output_range=self.largest - self.smallest,
            sqnr_db=sqnr_db(self.signal, self.noise),
            equal_pixels=self.equal / self.places if self.places else None,
        )


def decisions(output: Tensor, kind: str) -> Tensor:
    """What an output that tells classes apart decides: ids of the classes, or what is there."""
    return output.argmax(dim=1) if kind == "classes" else output > 0


def merged(meters: Iterable[OutputMeter]) -> OutputMeter:
    """One meter over the batches of several of one kind, of which there is at least one."""
    first, *others = meters
    total = OutputMeter(**vars(first))
    for meter in others:
        total.signal, total.noise = total.signal + meter.signal, total.noise + meter.noise
        total.equal, total.places = total.equal + meter.equal, total.places + meter.places
        total.largest_difference = max(total.largest_difference, meter.largest_difference)
        total.smallest, total.largest = min(total.smallest, meter.smallest), max(total.largest, meter.largest)
    return total


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of sums of squares; infinite where there is no noise, nan where one is nan."""
    if math.isnan(noise):
        return math.nan
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


SMALLEST_VARIATION = 0.05  # share of the reference's deviation below which an output is called nearly constant


@dataclass
class Variation:
    """How much an output varies over the images: sums over its numbers, channel by channel added up."""

    count: int = 0
    sums: Tensor | float = 0.0  # of each number of an image's output, where it is no map; of each channel of a map
    squares: Tensor | float = 0.0

    def update(self, output: Tensor) -> None:
        """Count one batch (N, ...)."""
        values = output.double()
        values = values.transpose(0, 1).flatten(1).T if values.dim() > 2 else values.reshape(len(values), -1)
        self.count += len(values)
        self.sums = self.sums + values.sum(dim=0)
        self.squares = self.squares + values.square().sum(dim=0)

    def deviation(self) -> float:
        """The root of the mean variance of its numbers or channels."""
        mean = torch.as_tensor(self.sums) / self.count
        variance = torch.as_tensor(self.squares) / self.count - mean.square()
        return math.sqrt(max(variance.mean().item(), 0.0))


def is_nearly_constant(reference: Variation, output: Variation) -> bool:
    """Whether an output hardly varies where the reference's does."""
    return output.deviation() < SMALLEST_VARIATION * reference.deviation()
