"""Several processes, one run: what `torchrun` starts, on PyTorch's own collective operations.

Every rank trains on its share of each step; a single process, without torchrun, is rank 0 of one. Gradients are summed
after the step's last part, not while it is computed, as DistributedDataParallel does: a rank that runs out of memory
could not repeat its step while the others wait in the middle of theirs. Batch norm cannot be synchronised inside an
exported graph, so each rank's statistics are those of its own images; `synchronise` makes them equal before anything
is scored or saved.
"""

import atexit
import logging
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets beside WORLD_SIZE
BUCKET = 2**23  # gradients that are summed at a time, 32 MB: one by one takes longer, all together more memory
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


def share(batch: list[Item]) -> list[Item]:
    """This rank's images of a batch; the first one where the images do not go round: every rank has to compute."""
    return batch[rank() :: world_size()] or batch[:1]


def share_counts(count: int) -> bool:
    """Whether this rank's share of `count` images counts; where it does not, it is a stand-in."""
    return rank() < count


@torch.no_grad()
def make_equal(model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for value in [*model.parameters(), *model.buffers()]:
        if value.numel():
            plain = value.contiguous()  # the order of the numbers, which a rank's memory need not have
            dist.broadcast(plain, 0)
            value.copy_(plain)


@torch.no_grad()
def sum_gradients(model: nn.Module) -> None:
    """Give every rank the sum of all ranks' gradients."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients:
        if bucket and sum(each.numel() for each in (*bucket, gradient)) > BUCKET:
            _sum_together(bucket)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_together(bucket)


def _sum_together(gradients: Sequence[Tensor]) -> None:
    """In the order of their numbers, which a rank's memory need not have."""
    flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, on every rank; `values` itself is replaced by it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def smallest(value: int, device: torch.device) -> int:
    """The smallest value of all ranks."""
    if world_size() > 1:
        values = torch.tensor(value, dtype=torch.int64, device=device)
        dist.all_reduce(values, op=dist.ReduceOp.MIN)
        value = int(values)
    return value


def processes_here() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


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
        if callable(compute_scale := getattr(module, "compute_scale", None)):
            compute_scale()
