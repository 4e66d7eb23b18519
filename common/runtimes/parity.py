"""Parity: how far two forms of one network are apart on the same inputs, and how far they may be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.runtimes.predictors import Predictor

TOLERANCE = 1e-4  # of the output range; float32 sums in another order stay near 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far one output of a predictor is from the reference's, over all inputs."""

    largest_difference: float
    output_range: float  # largest minus smallest value of the reference's output
    sqnr_db: float  # signal-to-quantization-noise ratio: 10 log10(sum of reference^2 / sum of difference^2)
    equal_pixels: float | None  # share of pixels with the same class, 0..1, where the output is a map of classes

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


# takes a file as a predictor; ValueError where it does not compute what it should, and then it is not kept
Check = Callable[[Predictor], Sequence[Agreement]]


def compare(reference: Predictor, candidate: Predictor, batches: Sequence[Tensor]) -> list[Agreement]:
    """Run both on every batch (N, C, H, W); the agreement of each output, in the order of the network's outputs.

    Raises:
        ValueError: the outputs differ in number or shape.
    """
    pairs = [(reference.outputs(images), candidate.outputs(images)) for images in batches]
    for expected, actual in pairs:
        shapes = [[tuple(output.shape) for output in outputs] for outputs in (expected, actual)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"outputs differ in shape: {shapes[0]} and {shapes[1]}")
    count = len(pairs[0][0])
    return [_agreement([(expected[i], actual[i]) for expected, actual in pairs]) for i in range(count)]


def _agreement(pairs: Sequence[tuple[Tensor, Tensor]]) -> Agreement:
    expected = torch.cat([pair[0].flatten() for pair in pairs]).double()
    noise = torch.cat([pair[1].flatten() for pair in pairs]).double() - expected
    power = noise.square().sum().item()
    return Agreement(
        largest_difference=noise.abs().max().item(),  # nan where any value is nan
        output_range=(expected.max() - expected.min()).item(),
        sqnr_db=decibels(expected.square().sum().item(), power) if power else math.inf,
        equal_pixels=_equal_pixels(pairs),
    )


def decibels(signal: float, noise: float) -> float:
    """The ratio of two sums of squares, both above 0."""
    return 10 * math.log10(signal / noise)


def _equal_pixels(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    if pairs[0][0].dim() != 4 or pairs[0][0].shape[1] == 1:
        return None
    same = [expected.argmax(dim=1) == actual.argmax(dim=1) for expected, actual in pairs]
    return torch.cat([equal.flatten() for equal in same]).double().mean().item()


def require_agreement(agreements: Sequence[Agreement], tolerance: float = TOLERANCE) -> None:
    """Accept agreements within `tolerance`, a share of the output range.

    Raises:
        ValueError: an output differs by more.
    """
    for agreement in agreements:
        if not agreement.relative <= tolerance:  # also false for nan
            raise ValueError(f"the result does not compute what PyTorch does: {agreement}; allowed {tolerance:.0e}")


def require_equal_pixels(agreements: Sequence[Agreement], share: float) -> None:
    """Accept agreements in which at least `share` (0..1) of the pixels have the same class.

    Two right INT8 kernels may round a value in other directions, so the logits differ by a few steps of their scale.

    Raises:
        ValueError: fewer pixels agree.
    """
    for agreement in agreements:
        if agreement.equal_pixels is not None and agreement.equal_pixels < share:
            raise ValueError(
                f"the file and PyTorch INT8 disagree: {agreement}; wanted at least {100 * share:g} % of pixels "
                "equal; --min_equal_pixels accepts less"
            )


def example_inputs(input_shape: tuple[int, int, int], seed: int) -> list[Tensor]:
    """Inputs for a parity check, (N, C, H, W): normal noise, a smooth ramp, and a batch of two."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, *input_shape, generator=generator)
    ramp = torch.linspace(-2, 2, input_shape[-1]).expand(1, *input_shape).contiguous()
    return [noise[:1], ramp, noise[1:]]
