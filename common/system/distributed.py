"""Several processes, one run: what `torchrun` starts, on PyTorch's own DistributedDataParallel.

Every rank trains on its share of each batch; a single process, without torchrun, is rank 0 of one. Batch norm cannot be
synchronised inside an exported graph, so each rank's statistics are those of its own images; `synchronise` makes them
equal before anything is scored or saved.
"""

import atexit
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets beside WORLD_SIZE
AVERAGED = ("running_mean", "running_var", "min_val", "max_val")  # of batch norm and of the observers


def join_ranks(device: torch.device) -> torch.device:
    """Join the processes that torchrun started, over gloo on the CPU or nccl on CUDA; return this process's device.

    Does nothing without torchrun. Only rank 0 tells how the run stands.

    Raises:
        ValueError: WORLD_SIZE is set, and not by torchrun.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return device
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise ValueError(
            f"the environment has WORLD_SIZE, but no {missing[0]}; start with torchrun, or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
    if not is_writer():
        logging.disable(logging.INFO)
    return device


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_writer() -> bool:
    """Whether this is the one process that writes files."""
    return rank() == 0


def shares(batch: Sequence[Item], parts: int) -> list[tuple[Sequence[Item], float]]:
    """This rank's images of a batch, in `parts` that are computed one after the other, and each part's weight.

    A part's weight is its share of the batch, so that the weighted sum of the parts' mean losses over all ranks is the
    mean over the batch. Where the images do not go round, a part takes the first one with weight 0: every rank has to
    compute as often as the others.
    """
    count = world_size() * parts
    pieces = [batch[rank() * parts + part :: count] for part in range(parts)]
    return [(piece or batch[:1], len(piece) / len(batch)) for piece in pieces]


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with gradients averaged over the ranks; the model itself where there is one rank."""
    if world_size() == 1:
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def without_synchronisation(model: nn.Module) -> AbstractContextManager:
    """Let gradients add up on this rank; they are averaged by the first backward pass outside of this context."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, on every rank; `values` itself is replaced by it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gathered(value: object) -> list:
    """The values of all ranks, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def synchronise(model: nn.Module) -> None:
    """Average batch norm's statistics and the observers' ranges over the ranks, and compute the scales from them.

    The average of the variances leaves out how the ranks' means differ, which is little for shares drawn at random.
    """
    if world_size() == 1:
        return
    for name, buffer in model.named_buffers():
        if name.endswith(AVERAGED) and buffer.numel() and bool(torch.isfinite(buffer).all()):
            buffer.copy_(summed(buffer.double()) / world_size())  # in double: the average of equal numbers is exact
    for module in model.modules():
        if hasattr(module, "compute_scale"):
            module.compute_scale()
