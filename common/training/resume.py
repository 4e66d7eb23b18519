"""What a run needs to go on as if it had never stopped, and the folder in which its checkpoints are kept."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from common.networks.checkpoints import Checkpoint
from common.runtimes.targets import DEFAULT_TARGET
from common.system.archives import is_intact
from common.system.distributed import gathered, rank, world_size
from common.system.failures import one_line
from common.system.random_state import random_state, set_random_state
from common.system.settings import flat
from common.training.average import WeightAverage
from common.training.settings import AUTO, FP32, QatRunSettings, RunSettings
from common.training.steps import Position

logger = logging.getLogger(__name__)

DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RuntimeError)  # of a training state taken apart

# settings that must not change in a resumed run, because its remaining steps would not be those of the unbroken one
FIXED = (
    "batch_size",
    "gradient_accumulation",
    "seed",
    "augmentation",
    "reduced_decode",
    "image_bits",
    "weights",
    "start_from",
    "ptq",
    "samples_per_epoch",
    "unweighted_loss",
    "precision",
    "learning_rate",
    "weight_decay",
    "schedule",
    "warmup_steps",
    "ema",
    "distill",
    "freeze_batch_norm",
    "freeze_observers",
    "target",
    "per_channel",
    "reduced_range",
    "keep_float",
    "fuse",
    "width",
)
BEFORE = {
    "target": DEFAULT_TARGET,
    "reduced_range": False,
    "start_from": FP32,
}  # what runs had whose version knew no other


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder with periodic checkpoints of one run, `PREFIX_epoch_E_step_S.pth`."""

    path: Path
    prefix: str

    def name_of(self, position: Position) -> Path:
        """The checkpoint of a place."""
        return self.path / f"{self.prefix}_epoch_{position.trained_epoch}_step_{position.step}.pth"

    def checkpoints(self) -> list[Path]:
        """The periodic checkpoints in the order of their steps."""
        pattern = re.compile(rf"{re.escape(self.prefix)}_epoch_\d+_step_(\d+)\.pth")
        paths = self.path.glob(f"{self.prefix}_*.pth")
        steps = {path: int(name[1]) for path in paths if (name := pattern.fullmatch(path.name))}
        return sorted(steps, key=lambda path: steps[path])

    def newest(self) -> Path | None:
        """The newest checkpoint that is intact; None where there is no checkpoint at all.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
        """
        found = self.checkpoints()
        for path in reversed(found):
            if is_intact(path):
                return path
            logger.warning("%s is damaged, trying the one before", path)
        if found:
            raise ValueError(
                f"--resume auto: all {len(found)} checkpoints in {self.path} are damaged; remove them to start anew"
            )
        return None

    def resumed(self, resume: str | None) -> Path | None:
        """The checkpoint to go on from, if any; `auto` in a folder without checkpoints starts anew.

        Raises:
            ValueError: as `newest`.
        """
        if resume != AUTO:
            return None if resume is None else Path(resume)
        path = self.newest()
        if path:
            logger.info("resuming from %s", path)
        else:
            logger.info("no checkpoint in %s, starting anew", self.path)
        return path

    def keep_last(self, count: int | None) -> None:
        """Remove all but the newest `count` periodic checkpoints (None: keep all)."""
        for path in self.checkpoints()[:-count] if count else ():
            path.unlink()


def fixed_settings(settings: RunSettings, task: Mapping[str, Any], input_hw: tuple[int, int]) -> dict[str, Any]:
    """What makes a run this run and no other; `task` is `Task.identity`."""
    values = flat(settings)
    if isinstance(settings, QatRunSettings):
        values["per_channel"] = settings.qat.quantization.per_channel  # also where the target chooses
    fixed = {
        **task,
        "input size": "{},{}".format(*(values.get("input_hw") or input_hw)),
        **{name: values.get(name) for name in FIXED},
    }
    if settings.training.schedule != "constant":
        fixed["epochs"] = settings.training.epochs
    return fixed


def training_state(
    optimizer: Optimizer,
    average: WeightAverage | None,
    fixed: dict[str, Any],
    position: Position,
    history: list[dict[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights. Every rank has to take part, for its random state.

    Dropout is the only one that draws from the global state; the data's random numbers follow from the seed.
    """
    return {
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average else None,
        "position": asdict(position),
        "history": list(history),
        "random": gathered(random_state(device)),
        "fixed": fixed,
    }


def restore_training_state(
    checkpoint: Checkpoint,
    optimizer: Optimizer,
    average: WeightAverage | None,
    fixed: dict[str, Any],
    device: torch.device,
    best_by: str,
) -> tuple[Position, list[dict[str, Any]]]:
    """Put optimizer, averaged weights and random state back; return where to go on, and the history up to there, which
    has `Task.best_by` in every entry.

    Raises:
        ValueError: the checkpoint holds no training state or a damaged one, or a setting differs that would make it
            another run.
    """
    state, path = checkpoint.training, checkpoint.path
    if state is None:
        raise ValueError(f"--resume {path}: no training state in it; resume from a periodic checkpoint of this script")
    damaged = f"--resume {path}: its training state is damaged, or of another version of this toolkit"
    if not isinstance(state, dict) or missing_entries(state) or not isinstance(state["fixed"], dict):
        raise ValueError(f"{damaged}; resume from an earlier checkpoint")
    before = _fixed_before(checkpoint, state["fixed"], fixed)
    changed = [
        f"{key} was {before.get(key)}, is {fixed.get(key)}"
        for key in before | fixed
        if before.get(key) != fixed.get(key)
    ]
    if changed:
        raise ValueError(f"--resume {path}: this would be another run: {'; '.join(changed)}")
    try:
        return _restore(state, optimizer, average, device, best_by)
    except DAMAGED as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{damaged} ({reason:.120}); resume from an earlier checkpoint") from error


def _fixed_before(checkpoint: Checkpoint, stored: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    """What was fixed in the run of a checkpoint; what its version did not keep yet is among its flags."""
    flags = checkpoint.description.arguments if checkpoint.description else {}
    labels = "labels (sha256)"
    palette = {labels: fixed[labels]} if labels in fixed else {}  # older runs know the network's palette alone
    older = {key: value for key, value in BEFORE.items() if fixed.get(key) is not None}
    values = {**palette, **older, **{key: flags[key] for key in fixed if key in flags}, **stored}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _restore(
    state: dict[str, Any], optimizer: Optimizer, average: WeightAverage | None, device: torch.device, best_by: str
) -> tuple[Position, list[dict[str, Any]]]:
    """Raises one of DAMAGED where an entry is not what `training_state` writes."""
    position, history, random = Position(**state["position"]), list(state["history"]), state["random"]
    if not isinstance(random, list):
        raise ValueError("random state of another kind")
    if not all(type(count) is int and count >= 0 for count in (position.epoch, position.samples, position.step)):
        raise ValueError(f"position {state['position']}")
    if not all(isinstance(each[best_by], float | int) for each in history):
        raise ValueError(f"history without {best_by}")
    optimizer.load_state_dict(state["optimizer"])
    for parameter, values in optimizer.state.items():
        if wrong := [key for key, value in values.items() if value.shape not in (parameter.shape, ())]:
            raise ValueError(f"the optimizer's {wrong[0]} has another shape than its weight")
    if average:
        average.load_state_dict(state["average"])
    if len(random) == world_size():
        set_random_state(random[rank()], device)
    else:
        logger.warning("the run had %d processes, now %d: dropout differs", len(random), world_size())
    return position, history


def missing_entries(state: dict[str, Any]) -> set[str]:
    """What `training_state` writes and `state` lacks."""
    return {"optimizer", "average", "position", "history", "random", "fixed"} - state.keys()


def stored_parts(checkpoint: Checkpoint) -> int | None:
    """In how many parts the steps of a checkpoint's run are computed; None where it does not say."""
    fixed = checkpoint.training.get("fixed") if isinstance(checkpoint.training, dict) else None
    parts = fixed.get("gradient_accumulation") if isinstance(fixed, dict) else None
    return parts if type(parts) is int and parts > 0 else None
