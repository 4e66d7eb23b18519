"""Calibration: how many images there is memory for at a time, and ranges from histograms of all of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx import GraphModule

from common.quantization.fake_quantize import FakeQuantize
from common.quantization.methods import RANGES
from common.system.memory import RESERVE, PeakMemory, free_memory

logger = logging.getLogger(__name__)


@torch.no_grad()
def images_at_once(prepared: GraphModule, batch: Tensor) -> int:
    """How many images of a batch (N, 3, H, W), on its device, there is memory for at a time: at least one, at most N.

    Measured with one image on the graph in evaluation mode, which leaves it as it is.
    """
    if len(batch) == 1:
        return 1
    free = free_memory(batch.device)
    peak = PeakMemory(batch.device)
    prepared(batch[:1])
    need = max(1, peak.growth())
    images = min(len(batch), max(1, int((1 - RESERVE) * free / need)))
    if images < len(batch):
        logger.info(
            "the observers see %d images at a time, computed %d at a time; one takes %.2f GB, %.2f GB are free",
            *(len(batch), images, need / 1e9, free / 1e9),
        )
    return images


@contextmanager
def ranges_from_histograms(prepared: GraphModule, ranges: str = RANGES[0]) -> Iterator[None]:
    """Within it all images that `prepared` computes count; at its end the ranges of activations are set by them.

    How a range is found is one of RANGES, `ranges`.

    Activations are in float meanwhile, as in post-training quantization, so that no range depends on another, and a
    batch may come in any parts. The moving averages of the training follow slowly, and follow the rarest values: INT8
    was 3 dB farther from the same weights in float after an epoch of SceneSeg (docs/int8.md, 7).
    Weights keep the range of the training; those that have none take their own.
    """
    activations = []
    for module in prepared.modules():
        if isinstance(module, FakeQuantize) and not module.of_weights:
            module.start_histogram(ranges)
            activations.append(module)
        elif isinstance(module, FakeQuantize) and not module.has_range():
            module.enable_observer()
    try:
        yield
    finally:
        for module in activations:
            module.take_histogram()
