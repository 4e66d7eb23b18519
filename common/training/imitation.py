"""Learning from images alone: the FP32 network says what its INT8 twin should say; judged by how near that comes."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from common.data.bad_samples import usable_shots
from common.data.cache import shot_loader
from common.data.datasets import spread
from common.data.output_drawing import save_outputs
from common.data.pairs import BadSample
from common.data.shots import AugmentedShots, Shot, ShotDataset, find_shots, split_shots
from common.networks.checkpoints import Checkpoint, load_network
from common.networks.image_inputs import ImageInputs, image_inputs
from common.quantization.codes import codes_for_backward
from common.runtimes.agreement import OutputMeter, merged
from common.scoring.evaluate import batches_of, drawn_inputs
from common.system.distributed import rank, summed, world_size
from common.system.files import sha256
from common.system.markdown import table
from common.system.progress import progress
from common.training.fit import MakeTask, Trainee
from common.training.goals import Goal, as_records, from_records, measure_goals, outputs_of
from common.training.precision import arithmetic
from common.training.settings import (
    RANGE_IMAGES,
    QatRunSettings,
    RunSettings,
    TrainingSettings,
    images_at_a_time,
)
from common.training.start import set_out
from common.training.task import TOGETHER, Batch, LossOf, Scores
from common.training.validation import VALIDATION_BATCH
from models import Network

logger = logging.getLogger(__name__)

GOALS = "goals"  # their key among what a checkpoint fixes


@dataclass(frozen=True)
class ImitationTask:
    """Images without masks, and the network that knows what is to be said of them."""

    training: Sequence[Shot]
    validation: Sequence[Shot]
    inputs: ImageInputs
    teacher: nn.Module  # in evaluation mode, on the device of the inputs
    teacher_path: Path  # of its weights
    goals: tuple[Goal, ...]  # one for each output
    best_by: str = "sqnr_db"
    starts_in_int8: bool = True
    can_get_worse: bool = True  # it starts near its goal, and steps that are too large lead away from it

    def dataset(self, settings: RunSettings) -> AugmentedShots:
        """The images of every training shot."""
        recipe, data = settings.training, settings.data
        load = shot_loader(self.inputs.shots, data.cache_dir, reduced=data.reduced_decode)
        return AugmentedShots(self.training, self.inputs.shots, recipe.augmentation, recipe.seed, load)

    def loss(self, settings: TrainingSettings) -> LossOf:
        """The distances of the outputs from the teacher's."""
        return partial(imitation_loss, settings.precision, self.inputs, self.teacher, self.goals)

    def calibration(self, count: int, batch_size: int, settings: RunSettings) -> Iterable[Tensor]:
        """Training images without augmentation."""
        seed, workers = settings.training.seed, settings.data.workers
        return drawn_inputs(self.training, self.inputs, count, batch_size, seed, workers)

    @torch.no_grad()
    def score(self, model: nn.Module, settings: RunSettings) -> Scores:
        """By folder and of all: SQNR of each output and their mean in dB, and the share of places of the same class."""
        load = shot_loader(self.inputs.shots, settings.data.cache_dir)
        size, own = min(images_at_a_time(settings), VALIDATION_BATCH), self.validation[rank() :: world_size()]
        meters: dict[str, list[OutputMeter]] = {}
        for name in dict.fromkeys(shot.dataset for shot in self.validation):
            dataset = ShotDataset([shot for shot in own if shot.dataset == name], self.inputs.shots, load)
            meters[name] = [OutputMeter(goal.kind) for goal in self.goals]
            batches = batches_of(dataset, size, settings.data.workers) if len(dataset) else ()
            for images in progress(batches, f"validate {name}", unit="batch"):
                inputs = self.inputs(images)
                pairs = zip(outputs_of(self.teacher, inputs), outputs_of(model, inputs), strict=True)
                for meter, (expected, actual) in zip(meters[name], pairs, strict=True):
                    meter.update(expected.cpu(), actual.cpu())
            for meter in meters[name]:
                _add_up(meter, self.inputs.device)
        together = [merged(each) for each in zip(*meters.values(), strict=True)]
        count = {name: sum(shot.dataset == name for shot in self.validation) for name in meters}
        summaries = {name: self._summary(each, count[name]) for name, each in meters.items()}
        return {**summaries, TOGETHER: self._summary(together, len(self.validation))}

    def _summary(self, meters: Sequence[OutputMeter], images: int) -> dict[str, Any]:
        found = {goal.name: meter.agreement() for goal, meter in zip(self.goals, meters, strict=True)}
        decibels = {name: each.decibels for name, each in found.items()}
        equal = {name: each.equal_pixels for name, each in found.items() if each.equal_pixels is not None}
        return {
            "images": images,
            "sqnr_db": sum(decibels.values()) / len(decibels),
            "sqnr_db_of": decibels,
            "equal_pixels": equal,
        }

    @torch.no_grad()
    def draw(self, model: nn.Module, folder: Path, count: int, step: int) -> None:
        """Original | FP32 | INT8 | where they differ, of every output that is a map."""
        dataset = ShotDataset(spread(self.validation, count), self.inputs.shots)
        for shot, images in zip(dataset.shots, (dataset[index] for index in range(len(dataset))), strict=True):
            inputs = self.inputs(images[None])
            pairs = zip(outputs_of(self.teacher, inputs), outputs_of(model, inputs), strict=True)
            for goal, (expected, actual) in zip(self.goals, pairs, strict=True):
                outputs = {"FP32": expected[0].float().cpu().numpy(), "INT8": actual[0].float().cpu().numpy()}
                rgb = self.inputs.shots.load(shot)[-1]
                save_outputs(folder, shot, f"{goal.name} step {step:06d}", rgb, outputs, goal.kind)

    def identity(self) -> dict[str, Any]:
        """The images, the teacher, and what its outputs are."""
        listed = "\n".join(f"{shot.dataset} {shot.image.name}" for shot in self.training)
        names = hashlib.sha256(listed.encode()).hexdigest()[:12]
        return {
            "images": f"{len(self.training)} (sha256 of their names {names})",
            "teacher (sha256)": sha256(self.teacher_path)[:12],
            GOALS: as_records(self.goals),
        }

    def sentence(self, scores: Scores) -> str:
        """SQNR and equal pixels of the outputs."""
        found = scores[TOGETHER]
        parts = [f"{name} {value:.2f} dB" for name, value in found["sqnr_db_of"].items()]
        parts += [f"{name} {value:.2%} equal" for name, value in found["equal_pixels"].items()]
        return f"SQNR {found['sqnr_db']:.2f} dB ({', '.join(parts)})"

    def table(self, scores: Scores) -> str:
        """One row a folder."""
        return table(
            [
                {
                    "images of": name,
                    "images": found["images"],
                    **{f"{output} SQNR dB": f"{value:.2f}" for output, value in found["sqnr_db_of"].items()},
                    **{f"{output} equal": f"{value:.4f}" for output, value in found["equal_pixels"].items()},
                }
                for name, found in scores.items()
            ]
        )


def from_images(settings: QatRunSettings, network: Network, bad: list[BadSample]) -> MakeTask:
    """Quantization-aware training on images alone.

    The images are found now, before the work; with `skip_bad` those that cannot be read go to `bad`. A run that starts
    has first done to its weights what `start_from` says, and is calibrated, so that its ranges hardly move again. The
    distances of the outputs, by which they are weighted, are those of the network that is quantized without training. A
    resumed one goes on with its own.
    """
    training, validation = _shots(settings, network, bad)
    qat = settings.qat

    def make(trainee: Trainee, resumed: Checkpoint | None, device: torch.device) -> ImitationTask:
        teacher, _ = load_network(qat.name, qat.taught_by, qat.weights)
        hw = trainee.description.input_hw
        inputs = image_inputs(qat.name, network, hw, device, qat.egolanes_checkpoint, qat.weights)
        task = ImitationTask(training, validation, inputs, teacher.to(device), qat.taught_by, ())
        if resumed:
            return replace(task, goals=stored_goals(resumed))
        student, count = cast(GraphModule, trainee.model), min(len(training), RANGE_IMAGES)
        set_out(student, task.teacher, (network.channels, *hw), task, settings)
        goals = measure_goals(network, task.teacher, student, task.calibration(count, VALIDATION_BATCH, settings))
        for goal in goals:
            logger.info("output %s, of %s: its error counts %.3g times", goal.name, goal.kind, goal.error_weight)
        return replace(task, goals=goals)

    return make


def _shots(settings: QatRunSettings, network: Network, bad: list[BadSample]) -> tuple[list[Shot], list[Shot]]:
    data, folders = settings.data, settings.qat.images or ()
    shots = find_shots(folders, network.images, data.image_bits)
    training, validation = split_shots(shots)
    if data.skip_bad:  # after the split: one that cannot be read moves no other from training to validation
        usable = set(usable_shots(shots, bad, data.workers))
        training, validation = ([shot for shot in part if shot in usable] for part in (training, validation))
        if not training or not validation:
            raise ValueError(f"--skip_bad: no {'validation' if training else 'training'} image of {len(shots)} is left")
    validation = spread(validation, settings.records.num_val_samples)
    logger.info("%d training and %d validation images", len(training), len(validation))
    return training, validation


def imitation_loss(
    precision: str, inputs: ImageInputs, teacher: nn.Module, goals: Sequence[Goal], model: nn.Module, batch: Batch
) -> Tensor:
    """The sum of the distances of a model's outputs from the teacher's on a batch of images.

    The teacher computes in float32 whatever the precision of the training: it is what is right here.
    """
    made = inputs(batch[0])
    with torch.no_grad():
        expected = outputs_of(teacher, made)
    with arithmetic(precision, inputs.device), codes_for_backward():
        actual = outputs_of(model, made)
        triples = zip(goals, actual, expected, strict=True)
        losses = [goal.distance(one.float(), other.float()) for goal, one, other in triples]
    return torch.stack(losses).sum()


def _add_up(meter: OutputMeter, device: torch.device) -> None:
    """Give every rank the sums of all ranks."""
    if world_size() > 1:
        sums = torch.tensor([meter.signal, meter.noise, meter.equal, meter.places], dtype=torch.float64)
        meter.signal, meter.noise, meter.equal, meter.places = summed(sums.to(device)).tolist()


def stored_goals(checkpoint: Checkpoint) -> tuple[Goal, ...]:
    """The goals of the run of a checkpoint.

    Raises:
        ValueError: it is of a run on labels, or does not say them.
    """
    fixed = checkpoint.training.get("fixed") if isinstance(checkpoint.training, dict) else None
    try:
        return from_records(fixed[GOALS])  # type: ignore[index]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"--resume {checkpoint.path}: no checkpoint of a run with --images; give --root as its run had it, or "
            "start anew in another folder"
        ) from error
