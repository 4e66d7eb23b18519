"""The losses that are learned from: cross-entropy with and without class weights, and the distance from a teacher."""

import torch.nn.functional as F
from torch import Tensor


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
