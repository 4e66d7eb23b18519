"""Parity: how far two forms of one network are apart on the same inputs, and how far they may be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.predictors import Predictor

TOLERANCE = 1e-4  # of the output range; float32 sums in another order stay near 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far two predictors are apart on the same inputs."""

    largest_difference: float
    output_range: float  # largest minus smallest value of the reference's output
    equal_pixels: float  # share of positions with the same class (argmax over channels), 0..1

    @property
    def relative(self) -> float:
        """The largest difference as a share of the output range."""
        return self.largest_difference / self.output_range if self.output_range else self.largest_difference

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.2e} ({self.relative:.1e} of the output range), "
            f"{100 * self.equal_pixels:.3f} % of pixels equal"
        )


def compare(reference: Predictor, candidate: Predictor, batches: Sequence[Tensor]) -> Agreement:
    """Run both on every batch (N, 3, H, W) and keep the worst."""
    differences, smallest, largest, equal, count = [], float("inf"), -float("inf"), 0, 0
    for images in batches:
        expected, actual = reference(images), candidate(images)
        if expected.shape != actual.shape:
            raise ValueError(f"outputs differ in shape: {tuple(expected.shape)} and {tuple(actual.shape)}")
        differences.append((expected - actual).abs().max())
        smallest, largest = min(smallest, expected.min().item()), max(largest, expected.max().item())
        same = expected.argmax(dim=1) == actual.argmax(dim=1)
        equal, count = equal + int(same.sum()), count + same.numel()
    difference = torch.stack(differences).max().item()  # nan where any of them is nan
    return Agreement(difference, largest - smallest, equal / count)


def require_agreement(agreement: Agreement, tolerance: float = TOLERANCE) -> Agreement:
    """Pass on an agreement within `tolerance`, a share of the output range.

    Raises:
        ValueError: the two differ by more.
    """
    if not agreement.relative <= tolerance:  # also false for nan
        raise ValueError(
            f"the exported network does not compute what PyTorch does: {agreement}; allowed {tolerance:.0e}"
        )
    return agreement


def require_equal_pixels(agreement: Agreement, share: float) -> Agreement:
    """Pass on an agreement in which at least `share` (0..1) of the pixels have the same class.

    INT8 kernels round in other places than PyTorch's reference does, so the logits differ by steps of their scale.

    Raises:
        ValueError: fewer pixels agree.
    """
    if agreement.equal_pixels < share:
        raise ValueError(
            f"ONNX Runtime and PyTorch INT8 disagree: {agreement}; wanted at least {100 * share:g} % of pixels equal. "
            "A processor without an int8 dot product (VNNI) may saturate; --min_equal_pixels accepts less"
        )
    return agreement


def example_inputs(input_shape: tuple[int, int, int], seed: int) -> list[Tensor]:
    """Inputs for a parity check, (N, C, H, W): normal noise, a smooth ramp, and a batch of two."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, *input_shape, generator=generator)
    ramp = torch.linspace(-2, 2, input_shape[-1]).expand(1, *input_shape).contiguous()
    return [noise[:1], ramp, noise[1:]]
