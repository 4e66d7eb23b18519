"""Gradient accumulation: in how many parts a step is computed, so that it fits into memory."""

import copy
import gc
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.quantization.fake_quantize import resize_as
from common.system.distributed import is_writer, processes_here, smallest
from common.system.failures import is_out_of_memory
from common.system.memory import RESERVE, PeakMemory, free_memory
from common.system.random_state import random_state, set_random_state
from common.training.task import Batch, LossOf

logger = logging.getLogger(__name__)

FEW_IMAGES = 8  # below it the statistics of a part cost accuracy: docs/training.md, steps in parts
MOMENTS = 2  # that AdamW keeps of every parameter, from its first step on


@dataclass
class Accumulation:
    """In how many parts every process computes its share of a step, one after the other."""

    parts: int | None  # None: to be chosen before the first step
    adapts: bool = False  # to the memory: more parts where a step runs out of it

    @classmethod
    def by(cls, setting: int | str, stored: int | None = None) -> "Accumulation":
        """By `TrainingSettings.gradient_accumulation`; `auto` goes on with the number that a checkpoint has stored."""
        return cls(setting) if isinstance(setting, int) else cls(stored, adapts=True)

    def divide(self, share: int) -> bool:
        """Take twice as many parts of a full share; False where a part is a single image already."""
        if self.parts is None or self.parts >= share:
            return False
        self.parts = min(2 * self.parts, share)
        if is_writer():
            images = -(-share // self.parts)
            logger.warning("out of memory: the step is computed again in %d parts of %d image(s)", self.parts, images)
        return True


class StepState:
    """What the computation of gradients changes beside them: buffers (batch norm, ranges) and random numbers."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.device = device
        self.random: dict[str, Any] = {}
        groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            groups.setdefault(buffer.dtype, []).append(buffer)
        self.groups = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in groups.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Note the present state; a kernel for each type of number on CUDA, not one for each of 2500 buffers."""
        for buffers, kept in self.groups:
            _copy(buffers, kept)
        self.random = random_state(self.device)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state back that was noted, bit for bit."""
        for buffers, kept in self.groups:
            _copy(kept, buffers)
        set_random_state(self.random, self.device)


def _copy(values: list[Tensor], places: list[Tensor]) -> None:
    for value, place in zip(values, places, strict=True):
        resize_as(place, value)
    torch._foreach_copy_(places, values)


def fitting_parts(loss_of: LossOf, model: nn.Module, batch: Batch, share: int, ahead: int, device: torch.device) -> int:
    """The number of parts, a power of two or one image each, with which a step fits what is free on every rank.

    Measured on a copy of the model, with the first image or two: nothing of the run changes.

    Args:
        batch: images of this rank's first step, on the CPU.
        share: images of a full step that are this rank's.
        ahead: batches that the loader keeps ready.
    """
    free = free_memory(device) // (processes_here() if device.type == "cpu" else 1)
    room = int((1 - RESERVE) * free)
    if device.type == "cpu":
        room -= ahead * sum(each.nbytes for each in batch)
    before = random_state(device)
    need, images = _measured(loss_of, model, batch, share, room, device)
    gc.collect()  # a graph and its copy refer to themselves
    release(device)
    set_random_state(before, device)
    images, parts = smallest(images, device), 1
    while parts < share and -(-share // parts) > images:
        parts = min(2 * parts, share)
    logger.info(
        "--gradient_accumulation %s: %d part(s) of %d image(s); one image takes %.2f GB, %.2f GB are free",
        *("auto", parts, -(-share // parts), need / 1e9, free / 1e9),
    )
    if parts > 1 and share // parts < FEW_IMAGES and any("running_mean" in name for name, _ in model.named_buffers()):
        logger.warning(
            "batch norm sees less than %d images at a time, which costs accuracy: free memory, or keep its statistics "
            "with --freeze_batch_norm 0 (docs/training.md, steps in parts)",
            FEW_IMAGES,
        )
    return parts


def _measured(
    loss_of: LossOf, model: nn.Module, batch: Batch, share: int, room: int, device: torch.device
) -> tuple[int, int]:
    """The bytes that one image takes in a step, and how many images have room: at least one, at most `share`."""
    trained = sum(each.nbytes for each in model.parameters() if each.requires_grad)
    peak = PeakMemory(device)
    rehearsal = copy.deepcopy(model)
    copied = sum(each.nbytes for each in [*rehearsal.parameters(), *rehearsal.buffers()])
    for module in rehearsal.modules():
        if isinstance(module, _BatchNorm):  # it refuses a single image whose map is one pixel
            module.eval()

    def needed(images: int) -> int:
        loss_of(rehearsal, tuple(each[:images] for each in batch)).backward()
        return max(peak.growth() - copied, 0) + MOMENTS * trained

    need = 0
    try:
        need = needed(1)
        if need * share <= room:  # with room to spare: the parameters' share is counted for every image
            return need, share
        if len(batch[0]) > 1 and share > 1:
            slope = max(needed(2) - need, 1)
            return need, min(max(1 + (room - need) // slope, 1), share)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return need, 1


def release(device: torch.device) -> None:
    """Give back what PyTorch's allocator keeps of freed tensors on CUDA."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
