"""The training loop that FP32 training and quantization-aware training share."""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from common.data.datasets import AugmentedDataset, Example
from common.system.allocator import keep_freed_memory
from common.system.distributed import shares, summed, without_synchronisation, world_size
from common.system.signals import StopRequest
from common.training.display import Display, Moment
from common.training.precision import arithmetic
from common.training.schedule import WeightAverage, learning_rate
from common.training.steps import Position, Step, Waiting, epoch_length, planned_steps, run_loader


@dataclass(frozen=True)
class Learner:
    """What a step changes, and how."""

    model: nn.Module  # computes the logits; may be wrapped for several processes
    optimizer: Optimizer
    set_mode: Callable[[int], None]  # puts the model into the training mode of an epoch
    teacher: nn.Module | None = None  # whose logits are learned, too, with the weight `args.distill`
    average: WeightAverage | None = None
    stop: StopRequest = field(default_factory=StopRequest)


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy in which every image has class weights of its own, averaged over the images.

    Equal to `torch.nn.functional.cross_entropy(..., weight=...)` of each image alone: a mean over its pixels weighted
    by the weight of their class. Shapes: logits (N, C, H, W), target ids (N, H, W), class_weights (N, C) -> scalar.
    """
    losses = F.cross_entropy(logits, target, reduction="none").flatten(1)
    weights = class_weights.gather(1, target.flatten(1))
    return ((losses * weights).sum(dim=1) / weights.sum(dim=1)).mean()


def unweighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy in which every pixel counts the same; `class_weights` is not used."""
    return F.cross_entropy(logits, target)


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL divergence of the student's classes from the teacher's, mean over the pixels: (N, C, H, W) twice -> scalar."""
    student, teacher = logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()


def train(
    learner: Learner, dataset: AugmentedDataset, args: argparse.Namespace, device: torch.device, start: Position
) -> Iterator[Moment]:
    """Train from `start` to the end of epoch `args.epochs - 1`; hand over at every moment a checkpoint is due.

    The mode is set anew after every moment, so that the caller may switch to evaluation in between. After a signal to
    `learner.stop` the step is finished and the last moment handed over.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    if device.type == "cpu":
        keep_freed_memory()
    length = epoch_length(len(dataset), args)
    total_steps = args.epochs * math.ceil(length / args.batch_size)
    batches = Waiting(iter(run_loader(dataset, start, args, device)))
    display = Display(batches, length, args.epochs)
    if start.due:
        yield display.moment(start)
    position, resumed = (start.scored() if start.due else start), True
    for step in planned_steps(length, start, args):
        if resumed:
            learner.set_mode(step.epoch)
            display.start(step)
        rate = learning_rate(args, position.step, total_steps)
        loss, stopped = take_step(learner, batches, step, rate, args, device)
        position = position.after(step, loss, length, args.checkpoint_interval)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {position.step}: the loss is {loss}")
        display.update(step, loss, rate)
        if resumed := position.due or stopped:
            yield display.moment(position, stopped)
            position = position.scored()
        if stopped:
            return


def take_step(
    learner: Learner,
    batches: Iterator[Example],
    step: Step,
    rate: float,
    args: argparse.Namespace,
    device: torch.device,
) -> tuple[float, bool]:
    """One optimizer step on `step.count` images over all ranks; the mean loss, and whether any rank is to stop."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.optimizer.zero_grad(set_to_none=True)
    weights = [weight for _, weight in shares(range(step.count), args.gradient_accumulation)]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for number, weight in enumerate(weights, start=1):
        # the gradients of all parts are averaged over the ranks once, with the last part
        with nullcontext() if number == len(weights) else without_synchronisation(learner.model):
            loss = weight * batch_loss(learner, next(batches), args, device)
            (loss * world_size()).backward()  # the ranks' gradients are averaged, their weights sum up to 1
        sums[0] += loss.detach()
    learner.optimizer.step()
    if learner.average:
        learner.average.update()
    sums[1] = learner.stop.signal is not None
    loss, stops = summed(sums).tolist()
    return loss, stops > 0


def batch_loss(learner: Learner, batch: Example, args: argparse.Namespace, device: torch.device) -> Tensor:
    """The mean loss of a batch on the CPU, with the share of it that comes from the teacher."""
    images = batch[0].to(device, memory_format=torch.channels_last, non_blocking=True)
    target, class_weights = (each.to(device, non_blocking=True) for each in batch[1:])
    loss_function = unweighted_cross_entropy if args.unweighted_loss else weighted_cross_entropy
    with arithmetic(args.precision, device):
        logits = learner.model(images).float()
        loss = loss_function(logits, target, class_weights)
        if learner.teacher is not None:
            with torch.no_grad():
                teacher_logits = learner.teacher(images).float()
            loss = loss + args.distill * distillation(logits, teacher_logits)
    return loss


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=args.weight_decay)
