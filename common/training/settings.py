"""The settings of a training run, made once from flags or in Python: what its checkpoints keep as `arguments`.

A field has the name of its flag. "The original's" is a default of the recipe by which the published networks were
quantized; the others are this toolkit's own choice.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from common.quantization.methods import START_METHODS, TIME_LIMIT, USUAL, PtqMethods, methods_of
from common.quantization.settings import QatSchedule, QuantizationSettings
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.settings import REPEATED, UNREPEATED, as_flags, from_flat
from models import DEFAULT_NETWORK

AUTO: Final = "auto"
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("fp32", "tf32", "bf16")
QAT_SCRIPT = "quantize_model_sceneseg.py"
PLACES = {"model_save_root_path", "root"}  # the flags that the script asks for

RANGE_IMAGES = 32  # of which the distances are measured before the first step, where the FP32 network teaches
# defaults there. It has no statistics of a batch, which would be noise in what is learned; ranges are found before the
# first step; and INT8 starts so near to it that steps which do not become smaller lead away again
FROM_IMAGES: dict[str, Any] = {"freeze_batch_norm": 0, "freeze_observers": 0, "schedule": "cosine"}
# and of a run that starts from what methods without training make of the weights: their biases and ranges belong to
# statistics that stay, and the range of an activation that was found by `mse` is no moving average
FROM_PTQ: dict[str, Any] = {"freeze_batch_norm": 0, "freeze_observers": 0, "ptq": START_METHODS}
# and of a run of one epoch on masks: it would end with weights that never saw their statistics at rest, and is too
# short to learn anew what its first steps unlearn, which the FP32 network's logits keep (docs/training.md)
FOR_ONE_EPOCH: dict[str, Any] = {"freeze_batch_norm": 0, "distill": 1.0}
FP32, PTQ = STARTS = ("fp32", "ptq")

# settings whose default is the recipe's; each can still be given
RECIPES: dict[str, dict[str, Any]] = {
    "original": {"learning_rate": 1e-5, "schedule": "constant", "warmup_steps": 0, "ema": 0.0, "distill": 0.0},
    "extended": {"learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 100, "ema": 0.0, "distill": 0.0},
}


@dataclass(frozen=True)
class RecordSettings:
    """The folder of a run: its checkpoints, and what is written down at each of them."""

    model_save_root_path: Path = Path("checkpoints")  # the folder
    checkpoint_interval: int = 8000  # images between checkpoints within an epoch; the original's
    keep_checkpoints: int | None = None  # how many of the last ones; None: all
    resume: str | None = field(default=None, metadata=UNREPEATED)  # a checkpoint to go on from; auto: the newest
    num_val_samples: int | None = None  # validation images of each dataset at each checkpoint; None: all
    validation_pictures: int = 0  # pictures of each dataset at each checkpoint
    tensorboard: bool = False  # write events for TensorBoard, too


@dataclass(frozen=True)
class DataSettings:
    """Where images come from, and how they are loaded."""

    root: Path = Path("data")  # the datasets are below it, as README.md shows
    datasets: tuple[str, ...] | None = None  # names below the root; None: all known ones that are found
    labels: Path | None = None  # what the masks of all datasets mean; None: their own files, or the network's palette
    workers: int = 2  # processes that decode images; 0: the one that trains
    skip_bad: bool = False  # read every sample once first; leave bad ones out and list them
    cache_dir: Path | None = None  # keeps decoded and resized images, 0.8 MB each at 320,640; None: no cache
    reduced_decode: bool = False  # decode large JPEG training images at half their size
    image_bits: int | None = None  # bits of data in images stored with 16; None: as the images show


@dataclass(frozen=True)
class TrainingSettings:
    """What decides, with the images and the weights at the start, which weights are learned.

    Raises:
        ValueError: a value that no run can have; names the field.
    """

    epochs: int = 5  # passes over the training images; the original's
    batch_size: int = 32  # images of an optimizer step, over all processes; the original's
    gradient_accumulation: int | Literal["auto"] = AUTO  # parts of a step, one after another; auto: by memory
    precision: str = "fp32"  # one of PRECISIONS: arithmetic outside fake quantization
    learning_rate: float = 1e-5  # of AdamW, at its highest; the original's
    weight_decay: float = 1e-5  # of AdamW; the original's
    schedule: str = "constant"  # one of SCHEDULES: of the learning rate
    warmup_steps: int = 0  # optimizer steps of a rising learning rate
    ema: float = 0.0  # decay of the averaged weights by step, below 1; 0: no average
    unweighted_loss: bool = False  # cross-entropy without the class weights of each image
    augmentation: float = 0.5  # strength, 0 to 1
    samples_per_epoch: int | None = None  # images of each epoch's order that are trained on; None: all
    seed: int = 0  # of every random choice

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        parts = self.gradient_accumulation
        _require(isinstance(parts, str) or parts > 0, "gradient_accumulation", parts, f"1 or more, or {AUTO}")
        _require(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, ", ".join(SCHEDULES))
        _require(0 <= self.ema < 1, "ema", self.ema, "0 or more and below 1")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r:.60}, wanted {wanted}")


@dataclass(frozen=True)
class MachineSettings:
    """On what a run computes."""

    device: str = "auto"  # cpu, cuda, or auto: CUDA where there is one
    threads: int | None = None  # of each process, on the CPU; None: PyTorch's own number
    processes: int = field(default=1, metadata=UNREPEATED)  # that share the run, started by torchrun
    debug: bool = field(default=False, metadata=UNREPEATED)  # show the traceback of an error

    def __post_init__(self) -> None:
        _require(self.processes > 0, "processes", self.processes, "1 or more")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every training run has."""

    records: RecordSettings = field(default_factory=RecordSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)


@dataclass(frozen=True)
class QatSettings:
    """What quantization-aware training has beside that."""

    name: str = DEFAULT_NETWORK  # the network: of the family, or MODULE:ATTRIBUTE
    fp32_model: Path = Path("best_model.pth")  # FP32 weights to start from; the original's
    weights: str | None = None  # which of several sets in that file, as `read_checkpoint` takes it; None: there is one
    start_from: str = FP32  # one of STARTS: those weights, or what methods without training make of them
    ptq: tuple[str, ...] | None = None  # names of these methods; None: START_METHODS
    ptq_seconds: float | None = None  # the longest time of learned rounding; None: TIME_LIMIT
    recipe: str = "original"  # one of RECIPES, which gives defaults
    distill: float = 0.0  # weight of the FP32 network's logits in the loss; 0: they are not learned
    teacher: Path | None = None  # FP32 weights of the network that teaches; None: those that are started from
    target: str = DEFAULT_TARGET  # the runtime that is trained for, one of TARGETS
    per_channel: bool | None = None  # one weight scale per output channel; the original's: no; None: the target's
    reduced_range: bool = False  # codes of weights are -64..63
    keep_float: tuple[str, ...] = field(default=(), metadata=REPEATED)  # patterns of modules that are not quantized
    input_hw: tuple[int, int] | None = None  # height and width in pixels; None: those of the FP32 weights
    fuse: bool = True  # upsampling stages in their fused form, models/fuse.py
    freeze_batch_norm: int = 1  # epochs after which batch norm's statistics stay; the original's
    freeze_observers: int = 2  # epochs after which the quantization ranges stay; the original's
    num_calibration_samples: int = 200  # training images for the last calibration; the original's
    images: tuple[Path, ...] | None = None  # folders of images without masks, from which the FP32 network teaches
    egolanes_checkpoint: Path | None = None  # FP32 weights that make AutoSteer's inputs of images

    def __post_init__(self) -> None:
        _require(self.target in TARGETS, "target", self.target, ", ".join(TARGETS))
        _require(self.start_from in STARTS, "start_from", self.start_from, ", ".join(STARTS))
        if self.images and self.distill:
            raise ValueError(
                "--distill: with --images the FP32 network's outputs are all that is learned; leave it out"
            )
        if self.teacher and not (self.images or self.distill):
            raise ValueError(f"--teacher {self.teacher}: teaches nothing; add --distill WEIGHT, or leave it out")

    @property
    def taught_by(self) -> Path:
        """The FP32 weights whose outputs are learned, where any are."""
        return self.teacher or self.fp32_model

    @property
    def quantization(self) -> QuantizationSettings:
        """The choices that shape the prepared graph."""
        per_channel = TARGETS[self.target].per_channel if self.per_channel is None else self.per_channel
        return QuantizationSettings(per_channel, self.fuse, self.keep_float, self.target, self.reduced_range)

    @property
    def methods(self) -> PtqMethods:
        """How the weights and ranges at the start are found; ValueError where they do not go together."""
        if self.start_from == FP32:
            return USUAL
        return methods_of(self.ptq or START_METHODS, self.ptq_seconds or TIME_LIMIT)

    @property
    def schedule(self) -> QatSchedule:
        """When statistics freeze; ValueError where ranges would freeze before what they depend on."""
        return QatSchedule(self.freeze_batch_norm, self.freeze_observers)


@dataclass(frozen=True, kw_only=True)
class QatRunSettings(RunSettings):
    """The settings of quantize_model_sceneseg.py."""

    qat: QatSettings = field(default_factory=QatSettings)


def retraining_command(stored: Mapping[str, Any], keep_float: Sequence[str]) -> str:
    """The quantization-aware training that a checkpoint is of, once more, with more modules in float.

    Args:
        stored: `Description.arguments` of the checkpoint; empty for one that does not describe itself.
        keep_float: patterns for the modules, which join those that were in float already.

    Raises:
        ValueError: a stored setting that no run can have.
    """
    settings = from_flat(QatRunSettings, stored)
    folder = Path(f"{settings.records.model_save_root_path}_keep_float")  # beside the first run's
    patterns = tuple(dict.fromkeys([*settings.qat.keep_float, *keep_float]))
    settings = replace(
        settings,
        records=replace(settings.records, model_save_root_path=folder),
        qat=replace(settings.qat, keep_float=patterns),
    )
    processes = settings.machine.processes
    launcher = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    usual = from_flat(QatRunSettings, RECIPES.get(settings.qat.recipe, {}))
    return shlex.join(
        [
            *launcher,
            QAT_SCRIPT,
            *as_flags(settings, usual, always=PLACES - ({"root"} if settings.qat.images else set())),
        ]
    )


def observed_images(stored: Mapping[str, Any]) -> int | None:
    """How many images the observers of a checkpoint saw at a time in its training; None where it does not say.

    Args:
        stored: `Description.arguments` of the checkpoint.

    Raises:
        ValueError: a stored setting that no run can have.
    """
    return observed_together(from_flat(QatRunSettings, stored)) if "batch_size" in stored else None


def keeps_ranges(stored: Mapping[str, Any]) -> bool:
    """Whether the run of a checkpoint held to the ranges that it found before its first step.

    Its weights have settled in them, and the best ranges of those weights are worse for them: on TwinLiteNet's two
    outputs by 0.3 and 1.1 dB.
    """
    return "batch_size" in stored and holds_ranges(from_flat(QatRunSettings, stored).qat)


def holds_ranges(qat: QatSettings) -> bool:
    """The same of its settings."""
    return (bool(qat.images) or qat.start_from == PTQ) and qat.schedule.freeze_observers == 0


def start_of(stored: Mapping[str, Any]) -> PtqMethods | None:
    """The methods that made the weights that the run of a checkpoint started from; None where those were FP32's."""
    qat = from_flat(QatRunSettings, stored).qat
    return qat.methods if qat.start_from == PTQ else None


def observed_together(settings: QatRunSettings) -> int:
    """Images of a batch of the last calibration: as many as the observers saw at a time before."""
    return RANGE_IMAGES if settings.qat.images else images_at_a_time(settings)


def images_at_a_time(settings: RunSettings) -> int:
    """Images that are computed together: processes share those of a step, and divide their shares into parts.

    Where the number of parts is not chosen yet, it counts as one.
    """
    training, processes = settings.training, settings.machine.processes
    parts = 1 if isinstance(training.gradient_accumulation, str) else training.gradient_accumulation
    images = min(training.batch_size, training.samples_per_epoch or training.batch_size)
    return -(-images // (processes * parts))
