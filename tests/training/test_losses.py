"""Losses with pixels that are ignored, and with any number of classes."""

import pytest
import torch
import torch.nn.functional as F

from common.data.labels import IGNORED
from common.training.losses import unweighted_cross_entropy, weighted_cross_entropy


@pytest.fixture(params=[2, 3, 19, 150])
def batch(request):
    """Logits, targets of which a third is ignored, and class weights, of four images."""
    generator, classes = torch.Generator().manual_seed(0), request.param
    logits = torch.randn(4, classes, 5, 7, generator=generator, requires_grad=True)
    target = torch.randint(classes, (4, 5, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 1 / 3] = IGNORED
    return logits, target, torch.rand(4, classes, generator=generator) + 0.1


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_the_weighted_loss_is_torchs_of_each_image_alone(batch):
    logits, target, weights = batch
    pieces = zip(logits.split(1), target.split(1), weights, strict=True)
    alone = [F.cross_entropy(one, ids, weight=weight, ignore_index=IGNORED) for one, ids, weight in pieces]
    ours, theirs = weighted_cross_entropy(logits, target, weights), torch.stack(alone).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


def test_the_unweighted_loss_is_torchs(batch):
    logits, target, weights = batch
    ours, theirs = (
        unweighted_cross_entropy(logits, target, weights),
        F.cross_entropy(logits, target, ignore_index=IGNORED),
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


def test_an_ignored_pixel_teaches_nothing(batch):
    logits, target, weights = batch
    for loss in (weighted_cross_entropy, unweighted_cross_entropy):
        learned = gradient(loss(logits, target, weights), logits).abs().sum(dim=1)
        assert (learned[target == IGNORED] == 0).all()
        assert (learned[target != IGNORED] > 0).all()


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["weights of its own labels", "other weights"])
def test_an_image_of_ignored_pixels_alone_adds_nothing(batch, weight):
    logits, target, weights = batch
    target, weights = target.clone(), weights.clone()
    target[1], weights[1] = IGNORED, weight  # `class_weights` of no labelled pixel are all 0
    others = [0, 2, 3]
    expected = 3 / 4 * weighted_cross_entropy(logits[others], target[others], weights[others])
    loss = weighted_cross_entropy(logits, target, weights)
    torch.testing.assert_close(loss, expected)
    learned = gradient(loss, logits)
    assert learned.isfinite().all() and (learned[1] == 0).all()


def test_a_batch_of_ignored_pixels_alone_is_no_nan(batch):
    logits, target, weights = batch
    target = torch.full_like(target, IGNORED)
    for loss in (weighted_cross_entropy, unweighted_cross_entropy):
        value = loss(logits, target, weights)
        assert value == 0
        assert (gradient(value, logits) == 0).all()


def test_every_labelled_pixel_counts_the_same_without_weights():
    """Two images, one with a single labelled pixel: three pixels, not two images, share the mean."""
    logits = torch.zeros(2, 2, 1, 2)
    logits[1, 0] = 1.0
    target = torch.tensor([[[0, 1]], [[0, IGNORED]]])
    sure = torch.tensor([1.0, 0.0]).softmax(dim=0)[0]
    expected = (2 * torch.tensor(2.0).log() - sure.log()) / 3
    torch.testing.assert_close(unweighted_cross_entropy(logits, target, torch.ones(2, 2)), expected)
