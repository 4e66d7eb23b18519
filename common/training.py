"""The training loop that FP32 training and quantization-aware training share, and what a run needs to be resumed."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from common.allocator import keep_freed_memory
from common.datasets import AugmentedDataset, EpochSampler, Sample, worker_init
from common.evaluate import evaluate_datasets, together
from common.files import write_json
from common.labels import CLASSES
from common.predictors import TorchPredictor
from common.progress import progress
from common.report import score_row, table

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, Any]]
VALIDATION_BATCH = 8  # images; larger batches only cost memory

# flags that must not change in a resumed run, because its remaining steps would not be those of the unbroken one
FIXED_ARGUMENTS = ("batch_size", "seed", "augmentation", "samples_per_epoch", "unweighted_loss", "weight_decay")


@dataclass(frozen=True)
class Position:
    """Where a run stands: `samples` images of `epoch` (from 0) were trained on, in `step` optimizer steps overall."""

    epoch: int = 0
    samples: int = 0
    step: int = 0


@dataclass(frozen=True)
class Moment:
    """A point of the run at which a checkpoint is due: after `checkpoint_interval` samples, and after an epoch."""

    position: Position  # from which a resumed run goes on
    epoch: int  # that was trained, from 0
    loss: float  # mean over the steps since the last moment


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


def train(
    model: nn.Module,
    optimizer: Optimizer,
    dataset: AugmentedDataset,
    args: argparse.Namespace,
    device: torch.device,
    set_mode: Callable[[int], None],
    start: Position,
) -> Iterator[Moment]:
    """Train from `start` to the end of epoch `args.epochs - 1`; hand over at every moment a checkpoint is due.

    Args:
        args: the flags of `common.cli.add_training_arguments`.
        set_mode: puts `model` into the training mode of an epoch; called again after every moment, so that the caller
            may switch to evaluation in between.
    """
    if device.type == "cpu":
        keep_freed_memory()
    loss_function = unweighted_cross_entropy if args.unweighted_loss else weighted_cross_entropy
    position = start
    while position.epoch < args.epochs:
        epoch, losses = position.epoch, []
        set_mode(epoch)
        loader = _epoch_loader(dataset, position, args)
        bar = progress(loader, f"epoch {epoch + 1}/{args.epochs}", unit="batch")
        for images, target, class_weights in bar:
            optimizer.zero_grad(set_to_none=True)
            logits = model(images.to(device, memory_format=torch.channels_last, non_blocking=True))
            loss = loss_function(logits, target.to(device), class_weights.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            before, after = position.samples, position.samples + len(images)
            position = Position(epoch, after, position.step + 1)
            if after // args.checkpoint_interval > before // args.checkpoint_interval and after < loader.sampler.stop:
                yield Moment(position, epoch, sum(losses) / len(losses))
                losses = []
                set_mode(epoch)
        position = Position(epoch + 1, 0, position.step)
        yield Moment(position, epoch, sum(losses) / max(len(losses), 1))


def _epoch_loader(dataset: AugmentedDataset, position: Position, args: argparse.Namespace) -> DataLoader:
    length = min(len(dataset), args.samples_per_epoch or len(dataset))
    sampler = EpochSampler(len(dataset), position.epoch, args.seed, start=position.samples, stop=length)
    return DataLoader(
        dataset,
        args.batch_size,
        sampler=sampler,
        num_workers=args.workers,
        worker_init_fn=worker_init,
        generator=torch.Generator().manual_seed(args.seed),  # a loader must not draw from the global random state
        pin_memory=torch.cuda.is_available(),
    )


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=args.weight_decay)


def validate(
    model: nn.Module,
    device: torch.device,
    samples: Sequence[Sample],
    input_hw: tuple[int, int],
    args: argparse.Namespace,
) -> Scores:
    """Score `model`, which the caller has put into evaluation mode: `IoUMeter.summary` by dataset and `together`."""
    predict = TorchPredictor(model, device)
    batch_size = min(args.batch_size, VALIDATION_BATCH)
    evaluations = evaluate_datasets(predict, samples, input_hw, batch_size, args.workers, "validate")
    summaries = {name: evaluation.meter.summary(CLASSES) for name, evaluation in evaluations.items()}
    return {**summaries, "together": together(evaluations.values()).meter.summary(CLASSES)}


def score_table(scores: Scores) -> str:
    """One row a dataset."""
    return table([{"dataset": name, **score_row(summary)} for name, summary in scores.items()])


def record(history: list[dict[str, Any]], moment: Moment, scores: Scores, folder: Path) -> None:
    """Add a moment to the history, write it to `folder`/history.json, and tell how the run stands."""
    score = scores["together"]
    history.append({"epoch": moment.epoch, "step": moment.position.step, "loss": moment.loss, **score})
    write_json(folder / "history.json", history)
    classes = ", ".join(f"{name} {value:.4f}" for name, value in score["iou"].items() if value is not None)
    logger.info(
        "epoch %d step %d: loss %.4f, mIoU %.4f (%s)",
        moment.epoch,
        moment.position.step,
        moment.loss,
        score["miou"],
        classes,
    )


def training_state(
    optimizer: Optimizer, position: Position, history: list, args: argparse.Namespace, num_samples: int
) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights so that the run can go on as if it had never stopped."""
    return {
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
        "history": list(history),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),
        "fixed": _fixed(args, num_samples),
    }


def restore_training_state(
    state: dict[str, Any] | None, optimizer: Optimizer, args: argparse.Namespace, num_samples: int
) -> tuple[Position, list[dict[str, Any]]]:
    """Put optimizer and random state back; return where to go on, and the history up to there.

    Raises:
        ValueError: the checkpoint holds no training state, or a flag differs that would make it another run.
    """
    if state is None:
        raise ValueError(
            f"--resume {args.resume}: no training state in it; resume from a periodic checkpoint of this script"
        )
    now = _fixed(args, num_samples)
    changed = [f"{key} was {value}, is {now[key]}" for key, value in state["fixed"].items() if value != now[key]]
    if changed:
        raise ValueError(f"--resume {args.resume}: this would be another run: {'; '.join(changed)}")
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Position(**state["position"]), list(state["history"])


def _fixed(args: argparse.Namespace, num_samples: int) -> dict[str, Any]:
    return {"training images": num_samples, **{name: getattr(args, name) for name in FIXED_ARGUMENTS}}
