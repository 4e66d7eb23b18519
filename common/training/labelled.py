"""Learning from masks: weighted cross-entropy, where asked for with the FP32 network's logits; judged by IoU."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from common.data.bad_samples import usable_samples
from common.data.cache import sample_loader
from common.data.classes import classes_of
from common.data.datasets import SampleSource, spread
from common.data.drawing import save_prediction
from common.data.loading import AugmentedDataset, load_sample
from common.data.pairs import BadSample, Sample
from common.data.transforms import ImageFormat
from common.networks.checkpoints import Checkpoint, load_network
from common.quantization.codes import codes_for_backward
from common.runtimes.predictors import TorchPredictor
from common.scoring.evaluate import calibration_batches
from common.scoring.tables import score_table
from common.system.files import sha256
from common.training.fit import MakeTask, Trainee
from common.training.losses import distillation, unweighted_cross_entropy, weighted_cross_entropy
from common.training.precision import arithmetic
from common.training.settings import PTQ, DataSettings, QatRunSettings, RunSettings, TrainingSettings, images_at_a_time
from common.training.start import set_out
from common.training.task import TOGETHER, Batch, LossOf, Scores
from common.training.validation import validate
from models import Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A network whose logits are learned beside the masks."""

    model: nn.Module  # in evaluation mode, on the device of the training
    weight: float  # of its share of the loss
    path: Path  # of its weights


@dataclass(frozen=True)
class LabelledTask:
    """Images with masks of a network's classes."""

    training: Sequence[Sample]
    validation: Sequence[Sample]
    network: Network
    image_format: ImageFormat
    device: torch.device
    teacher: Teacher | None = None
    best_by: str = "miou"
    starts_in_int8: bool = False  # FP32 weights know nothing of INT8
    can_get_worse: bool = False  # and images that a result was chosen by would not judge it

    def dataset(self, settings: RunSettings) -> AugmentedDataset:
        """Image, mask and class weights of every training sample."""
        recipe, data = settings.training, settings.data
        load = sample_loader(data.cache_dir, reduced=data.reduced_decode)
        return AugmentedDataset(self.training, self.image_format, recipe.augmentation, recipe.seed, load)

    def loss(self, settings: TrainingSettings) -> LossOf:
        """Cross-entropy, and the teacher's share."""
        return partial(labelled_loss, settings, self.device, self.teacher)

    def calibration(self, count: int, batch_size: int, settings: RunSettings) -> Iterable[Tensor]:
        """Training images without augmentation."""
        seed, workers = settings.training.seed, settings.data.workers
        images = calibration_batches(self.training, count, batch_size, self.image_format, seed, workers)
        return (batch.to(self.device) for batch in images)

    def score(self, model: nn.Module, settings: RunSettings) -> Scores:
        """`IoUMeter.summary` by dataset and of all."""
        return validate(
            model,
            self.device,
            self.validation,
            self.image_format,
            classes_of(self.network, self.validation),
            batch_size=images_at_a_time(settings),
            workers=settings.data.workers,
            load=sample_loader(settings.data.cache_dir),
        )

    def draw(self, model: nn.Module, folder: Path, count: int, step: int) -> None:
        """Original | GT | Prediction."""
        predict, classes = TorchPredictor(model, self.device), classes_of(self.network, self.validation)
        for sample in spread(self.validation, count):
            rgb, target, _ = load_sample(sample, self.image_format.hw)
            predicted = predict(self.image_format.to_tensor(rgb)[None]).argmax(dim=1)[0].numpy()
            save_prediction(folder, sample, f"step {step:06d}", rgb, target, predicted, classes)

    def identity(self) -> dict[str, Any]:
        """The images, what their labels mean, and the teacher."""
        listed = "\n".join(f"{sample.dataset} {sample.image.name}" for sample in self.training)
        labels = sorted({(each.dataset, each.labels.stored, each.labels.to_class) for each in self.training})
        found = {
            "training images": f"{len(self.training)} (sha256 of their names {_short_sha256(listed)})",
            "labels (sha256)": _short_sha256(repr(labels)),
        }
        return found | ({"teacher (sha256)": sha256(self.teacher.path)[:12]} if self.teacher else {})

    def sentence(self, scores: Scores) -> str:
        """Mean and classes."""
        found = scores[TOGETHER]
        classes = ", ".join(f"{name} {iou:.4f}" for name, iou in found["iou"].items() if iou is not None)
        return f"mIoU {found['miou']:.4f} ({classes})"

    def table(self, scores: Scores) -> str:
        """One row a dataset."""
        return score_table(scores)


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def from_masks(settings: QatRunSettings, network: Network, bad: list[BadSample]) -> MakeTask:
    """Quantization-aware training on masks, with `distill` also on the FP32 network's logits.

    A run that starts has first done to its weights what `start_from` says; a resumed one has them already.
    The images are found now, before the work; with `skip_bad` those that cannot be used go to `bad`.
    """
    qat = settings.qat
    training, validation = labelled_samples(settings, qat.name, network, bad)

    def make(trainee: Trainee, resumed: Checkpoint | None, device: torch.device) -> LabelledTask:
        teacher = None
        if qat.distill:
            model, _ = load_network(qat.name, qat.taught_by, qat.weights)
            teacher = Teacher(model.to(device), qat.distill, qat.taught_by)
        hw, from_ptq = trainee.description.input_hw, qat.start_from == PTQ
        image_format = ImageFormat.of(network, hw)
        task = LabelledTask(training, validation, network, image_format, device, teacher, starts_in_int8=from_ptq)
        if from_ptq and not resumed:
            taught_by = teacher.model if teacher else None
            set_out(cast(GraphModule, trainee.model), taught_by, (network.channels, *hw), task, settings)
        return task

    return make


def labelled_samples(
    settings: RunSettings, name: str, network: Network, bad: list[BadSample]
) -> tuple[list[Sample], list[Sample]]:
    """Training and validation images with their masks; with `skip_bad` those that cannot be used go to `bad`."""
    find = partial(usable_samples, sample_source(settings.data, name, network), bad=bad)
    training, validation = find("train"), spread(find("val"), settings.records.num_val_samples)
    logger.info("%d training and %d validation images", len(training), len(validation))
    return training, validation


def sample_source(data: DataSettings, name: str, network: Network) -> SampleSource:
    """Where the samples of the network `name` are, and how they are read."""
    return SampleSource.of(
        name,
        network,
        data.root,
        names=data.datasets,
        labels=data.labels,
        skip_bad=data.skip_bad,
        workers=data.workers,
        image_bits=data.image_bits,
    )


def labelled_loss(
    settings: TrainingSettings, device: torch.device, teacher: Teacher | None, model: nn.Module, batch: Batch
) -> Tensor:
    """The mean loss of `model` on a batch of images, masks and class weights (an `Example`), with the teacher's share.

    A network with several outputs is trained by its first, the map of the classes.
    """
    images = batch[0].to(device, memory_format=torch.channels_last, non_blocking=True)
    target, class_weights = (each.to(device, non_blocking=True) for each in batch[1:])
    loss_function = unweighted_cross_entropy if settings.unweighted_loss else weighted_cross_entropy
    with arithmetic(settings.precision, device), codes_for_backward():
        logits = _first(model(images)).float()
        loss = loss_function(logits, target, class_weights)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = _first(teacher.model(images)).float()
            loss = loss + teacher.weight * distillation(logits, teacher_logits)
    return loss


def _first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]
