"""Batches for the observers that are larger than memory: computed in parts, with the ranges of the whole batch."""

import logging

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from common.quantization.fake_quantize import FakeQuantize
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


@torch.no_grad()
def observe(prepared: GraphModule, batch: Tensor, at_once: int) -> None:
    """Let the observers, which are switched on, see a batch (N, 3, H, W), computed `at_once` images at a time.

    Each part moves the ranges from where they were before the batch, and the outermost ends of all parts are those that
    the whole batch would have moved them to. Rounding sees the range of its part alone, which differs by little.
    """
    if len(batch) <= at_once:
        prepared(batch)
        return
    observers = [module for module in prepared.modules() if hasattr(module, "min_val") and hasattr(module, "max_val")]
    before = [_range(observer) for observer in observers]
    widest: list[tuple[Tensor, Tensor]] = []
    for part in batch.split(at_once):
        for observer, (low, high) in zip(observers, before, strict=True):
            _set_range(observer, low, high)
        prepared(part)
        moved = [_range(observer) for observer in observers]
        pairs = zip(widest or moved, moved, strict=True)
        widest = [(torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])) for one, other in pairs]
    for observer, (low, high) in zip(observers, widest, strict=True):
        _set_range(observer, low, high)
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.compute_scale()


def _range(observer: nn.Module) -> tuple[Tensor, Tensor]:
    return observer.get_buffer("min_val").clone(), observer.get_buffer("max_val").clone()


def _set_range(observer: nn.Module, low: Tensor, high: Tensor) -> None:
    for name, value in (("min_val", low), ("max_val", high)):
        place = observer.get_buffer(name)
        resize_as(place, value)
        place.copy_(value)


def resize_as(place: Tensor, value: Tensor) -> None:
    """Let a buffer take a value of another size: ranges by channel get theirs with the first image."""
    if place.shape != value.shape:
        place.resize_(value.shape)
