"""Parity: how far two forms of one network are apart on the same inputs, and how far they may be."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.runtimes.agreement import Agreement, OutputMeter
from common.runtimes.predictors import Predictor

TOLERANCE = 1e-4  # of the output range; float32 sums in another order stay near 1e-6

# takes a file as a predictor; ValueError where it does not compute what it should, and then it is not kept
Check = Callable[[Predictor], Sequence[Agreement]]


def maps_tell_classes(shapes: Sequence[Sequence[int]]) -> list[str]:
    """The kinds of outputs of which the shapes are all that is known: maps of several channels are of classes."""
    return ["classes" if len(shape) == 4 and shape[1] > 1 else "values" for shape in shapes]


def compare(
    reference: Predictor,
    candidate: Predictor,
    batches: Sequence[Tensor],
    kinds_of: Callable[[Sequence[Sequence[int]]], Sequence[str]] = maps_tell_classes,
) -> list[Agreement]:
    """Run both on every batch (N, C, H, W); the agreement of each output, in the order of the network's outputs.

    Args:
        kinds_of: the kinds of outputs by their shapes, models.network.OUTPUT_KINDS; as of a `Network`.

    Raises:
        ValueError: the outputs differ in number or shape.
    """
    meters: list[OutputMeter] = []
    for images in batches:
        expected, actual = reference.outputs(images), candidate.outputs(images)
        if len(expected) != len(actual):
            shapes = [[tuple(output.shape) for output in outputs] for outputs in (expected, actual)]
            raise ValueError(f"outputs differ in shape: {shapes[0]} and {shapes[1]}")
        meters = meters or [OutputMeter(kind) for kind in kinds_of([output.shape for output in expected])]
        for meter, one, other in zip(meters, expected, actual, strict=True):
            meter.update(one, other)
    return [meter.agreement() for meter in meters]


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
