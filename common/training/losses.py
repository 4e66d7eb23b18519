"""The losses that are learned from: cross-entropy with and without class weights, and the distance from a teacher."""

import torch.nn.functional as F
from torch import Tensor

from common.data.labels import IGNORED

SMALLEST_WEIGHT = 1e-12  # of an image's pixels together: one without a labelled pixel has none


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy in which every image has class weights of its own, averaged over the images.

    Equal to `torch.nn.functional.cross_entropy(..., weight=...)` of each image alone: a mean over its pixels weighted
    by the weight of their class, without those that are ignored; an image of ignored pixels alone adds nothing.
    Shapes: logits (N, C, H, W), target ids (N, H, W), class_weights (N, C) -> scalar.
    """
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED).flatten(1)
    known = target != IGNORED
    weights = class_weights.gather(1, target.where(known, 0).flatten(1)) * known.flatten(1)
    return ((losses * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=SMALLEST_WEIGHT)).mean()


def unweighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy in which every pixel that is not ignored counts the same; `class_weights` is not used."""
    losses = F.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORED)
    return losses / (target != IGNORED).sum().clamp(min=1)


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL divergence of the student's classes from the teacher's, mean over the pixels: (N, C, H, W) twice -> scalar."""
    student, teacher = logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()


def relative_error(outputs: Tensor, teacher_outputs: Tensor, scales: Tensor) -> Tensor:
    """The squared error as a share of what the teacher's outputs vary by: scale-free, and blind to a common offset.

    mean over channels of mean((student - teacher)^2) / scale. With the variance of the teacher's channel as the scale
    that is the fraction of variance unexplained, 1 - R^2 in statistics, and 10^(-SQNR / 10) of a channel of zero mean.
    Shapes: (N, C, ...) or (N,) twice, scales (C,) or (1,) -> scalar.
    """
    squares = (outputs - teacher_outputs).square()
    return (by_channel(squares).mean(dim=(0, 2)) / scales).mean()


def by_channel(output: Tensor) -> Tensor:
    """An output of any shape as (N, C, places); one without channels as a single one."""
    return output.reshape(len(output), output.shape[1] if output.dim() > 1 else 1, -1)
