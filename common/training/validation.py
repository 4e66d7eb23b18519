"""Scoring a network while it is trained: each rank scores its share of the images, the counts are added up."""

from collections.abc import Sequence

import torch
from torch import nn

from common.data.classes import Classes
from common.data.datasets import Sample
from common.data.loading import Loader, load_sample
from common.data.transforms import ImageFormat
from common.runtimes.predictors import TorchPredictor
from common.scoring.evaluate import evaluate_datasets, together
from common.scoring.metrics import IoUMeter
from common.system.distributed import rank, summed, world_size
from common.training.task import TOGETHER, Scores

VALIDATION_BATCH = 8  # images; larger batches only cost memory


def validate(
    model: nn.Module,
    device: torch.device,
    samples: Sequence[Sample],
    image_format: ImageFormat,
    classes: Classes,
    *,
    batch_size: int = VALIDATION_BATCH,
    workers: int = 0,
    load: Loader = load_sample,
) -> Scores:
    """Score `model`, which the caller has put into evaluation mode: `IoUMeter.summary` by dataset and `together`.

    Every rank has to take part, and gets the scores over all images. Batches are of at most VALIDATION_BATCH images.
    """
    predict = TorchPredictor(model, device)
    own = samples[rank() :: world_size()]
    size = min(batch_size, VALIDATION_BATCH)
    meters = evaluate_datasets(predict, own, image_format, classes, size, workers, "validate", load)
    names = dict.fromkeys(sample.dataset for sample in samples)
    whole = {name: meters.get(name, IoUMeter(classes)) for name in names}
    for meter in whole.values():
        _add_up(meter, device)
    summaries = {name: meter.summary() for name, meter in whole.items()}
    return {**summaries, TOGETHER: together(whole.values(), classes).summary()}


def _add_up(meter: IoUMeter, device: torch.device) -> None:
    """Give every rank the counts of all ranks; they are whole numbers, exact in double precision."""
    if world_size() == 1:
        return
    counts = torch.cat([meter.confusion.flatten().double(), meter.smoothed_sum, torch.tensor([float(meter.images)])])
    counts = summed(counts.to(device)).cpu()
    confusion, meter.smoothed_sum, images = counts.split([meter.confusion.numel(), len(meter.smoothed_sum), 1])
    meter.confusion = confusion.long().reshape_as(meter.confusion)
    meter.images = int(images)
