"""IoU from confusion matrices, and a meter that counts over any number of batches and divides once."""

import warnings

import numpy as np
import torch
from torch import Tensor

from common.data.classes import Classes


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, diag / (row + column - diag): (..., C, C or C + 1) [target, predicted] -> (..., C); nan for a
    class that neither targets nor predictions hold. A last column more is of predictions that are none of the classes.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2)[..., : hits.shape[-1]] - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def iou_of_targets(confusion: np.ndarray) -> np.ndarray:
    """`iou`, and nan for a class that no target holds, too: on the same images the same classes for every model."""
    return np.where(confusion.sum(axis=-1) > 0, iou(confusion), np.nan)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without nan; nan where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row of nan alone is nan, as wanted
        return np.nanmean(values, axis=-1)


class IoUMeter:
    """Counts for two definitions of IoU, which are not comparable with each other.

    - `iou`, `miou`: the field's standard. One confusion matrix over all images; IoU_c = diag / (row + column - diag);
      the mean over the classes that occur.
    - `smoothed`: the original's. For each image (intersection + 1) / (union + 1), once over all class maps together and
      once for each class, averaged over the images; a class absent from both counts as 1.
    """

    def __init__(self, classes: Classes):
        self.classes = classes
        count, scored = len(classes.names), len(classes.scored)
        others = int(scored < count)
        self.place = torch.full((count,), scored)  # class id -> row and column; `scored`: none of the scored classes
        self.place[list(classes.scored)] = torch.arange(scored)
        self.confusion = torch.zeros(scored, scored + others, dtype=torch.int64)  # [target, predicted]
        self.smoothed_sum = torch.zeros(1 + scored, dtype=torch.float64)  # all maps together, then each class
        self.images = 0

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count a batch of class ids, predicted and target (N, H, W); targets that are not scored are ignored.

        Raises:
            ValueError: the shapes differ, or a predicted id is none of the network's classes.
        """
        (rows, columns), count, known = self.confusion.shape, len(target), len(self.place)
        if predicted.shape != target.shape:
            raise ValueError(
                f"predicted ids {tuple(predicted.shape)} and target ids {tuple(target.shape)} differ in shape"
            )
        predicted, target = predicted.cpu().long(), target.cpu().long()
        if predicted.numel() and not 0 <= predicted.min() <= predicted.max() < known:
            raise ValueError(f"predicted ids {predicted.min()}..{predicted.max()}, wanted class ids 0..{known - 1}")
        image = torch.arange(count).reshape(-1, 1, 1)
        valid = (target >= 0) & (target < known)
        if rows < known:
            predicted, target = self.place[predicted], self.place[torch.where(valid, target, 0)]
            valid &= target < rows
        ignored = count * rows * columns  # one more cell takes the ignored pixels: cheaper than selecting the others
        cells = torch.where(valid, (image * rows + target) * columns + predicted, ignored).flatten()
        matrices = torch.bincount(cells, minlength=ignored + 1)[:ignored].reshape(count, rows, columns)
        self.confusion += matrices.sum(dim=0)
        hits = matrices.diagonal(dim1=1, dim2=2)
        union = matrices.sum(dim=1)[:, :rows] + matrices.sum(dim=2) - hits
        together = (hits.sum(dim=1, keepdim=True) + 1) / (union.sum(dim=1, keepdim=True) + 1).double()
        self.smoothed_sum += torch.cat([together, (hits + 1) / (union + 1).double()], dim=1).sum(dim=0)
        self.images += count

    def merge(self, other: "IoUMeter") -> None:
        """Count the images of `other` here too."""
        self.confusion += other.confusion
        self.smoothed_sum += other.smoothed_sum
        self.images += other.images

    def iou(self) -> Tensor:
        """Standard IoU of each class, float64 (C,); nan for a class that neither targets nor predictions hold."""
        return torch.from_numpy(iou(self.confusion.numpy()))

    def miou(self) -> float:
        """Standard mIoU: the mean of `iou` over the classes that occur; nan when nothing was counted."""
        return float(mean_of_known(iou(self.confusion.numpy())))

    def smoothed(self) -> tuple[float, Tensor]:
        """The original's IoU: over all class maps together, and of each class (C,)."""
        together, *classes = (self.smoothed_sum / self.images).tolist()
        return together, torch.tensor(classes, dtype=torch.float64)

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels with the right class."""
        return (self.confusion.diag().sum() / self.confusion.sum()).item()

    def summary(self) -> dict[str, object]:
        """All figures as JSON takes them; null for a class that does not occur.

        Raises:
            ValueError: nothing was counted.
        """
        if not self.confusion.any():
            raise ValueError("no image was scored, or none whose target holds a class id")
        together, classes = self.smoothed()
        names = self.classes.scored_names
        named = zip(names, self.iou().tolist(), strict=True)
        return {
            "images": self.images,
            "miou": self.miou(),
            "iou": {name: None if value != value else value for name, value in named},
            "miou_smoothed": together,
            "iou_smoothed": dict(zip(names, classes.tolist(), strict=True)),
            "pixel_accuracy": self.pixel_accuracy(),
        }


def confusion_of(logits: Tensor, mask: Tensor, classes: Classes) -> np.ndarray:
    """The confusion matrix of images, [target, predicted], from logits (N, C, H, W) and class ids (N, H, W)."""
    meter = IoUMeter(classes)
    meter.update(logits.argmax(dim=1), mask)
    return meter.confusion.numpy()


def miou_of(confusions: np.ndarray) -> float:
    """mIoU of images together, from a matrix of each, (N, C, C or C + 1)."""
    return float(mean_of_known(iou(confusions.sum(axis=0))))
