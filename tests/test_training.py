import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.training import (
    Position,
    make_optimizer,
    restore_training_state,
    train,
    training_state,
    weighted_cross_entropy,
)


class ToyData(torch.utils.data.Dataset):
    """Ten images of 4x6 with targets that depend on the image; indexed as `AugmentedDataset` is."""

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        epoch, index = draw
        generator = torch.Generator().manual_seed(100 * epoch + index)
        image = torch.randn(3, 4, 6, generator=generator)
        return image, image.argmax(dim=0), torch.ones(3)


def make_args(**changes):
    flags = {
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 1e-5,
        "unweighted_loss": False,
        "augmentation": 0.5,
        "samples_per_epoch": None,
        "checkpoint_interval": 4,
        "seed": 0,
        "workers": 0,
        "resume": "checkpoint.pth",
    }
    return argparse.Namespace(**{**flags, **changes})


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))


def moments_of(model, args, optimizer=None, start=None):
    optimizer = optimizer or make_optimizer(model, args)
    return train(
        model, optimizer, ToyData(), args, torch.device("cpu"), lambda epoch: model.train(), start or Position()
    )


def test_weighted_loss_equals_the_mean_of_the_images_alone():
    torch.manual_seed(0)
    logits, target, weights = torch.randn(4, 3, 5, 7), torch.randint(3, (4, 5, 7)), torch.rand(4, 3) + 0.1
    alone = [F.cross_entropy(logits[i : i + 1], target[i : i + 1], weight=weights[i]) for i in range(4)]
    torch.testing.assert_close(weighted_cross_entropy(logits, target, weights), torch.stack(alone).mean())


def test_checkpoints_are_due_within_and_after_each_epoch():
    positions = [moment.position for moment in moments_of(make_model(), make_args(epochs=2))]
    assert positions == [
        Position(0, 4, 1),
        Position(0, 8, 2),
        Position(1, 0, 3),
        Position(1, 4, 4),
        Position(1, 8, 5),
        Position(2, 0, 6),
    ]


def test_samples_per_epoch_bounds_the_epoch():
    positions = [m.position for m in moments_of(make_model(), make_args(epochs=1, samples_per_epoch=5))]
    assert positions == [Position(0, 4, 1), Position(1, 0, 2)]


def test_training_learns():
    losses = [moment.loss for moment in moments_of(make_model(), make_args(epochs=40, checkpoint_interval=1000))]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stop_at", range(8))
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(stop_at):
    args = make_args()
    unbroken = make_model()
    for _ in moments_of(unbroken, args):
        pass

    model = make_model()
    optimizer = make_optimizer(model, args)
    for number, moment in enumerate(moments_of(model, args, optimizer)):
        if number == stop_at:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            state = training_state(optimizer, moment.position, [], args, num_samples=10)
            break

    torch.manual_seed(99)
    resumed = make_model()
    resumed.load_state_dict(weights)
    optimizer = make_optimizer(resumed, args)
    torch.randn(5)  # the random state of the new process is another one
    start, _ = restore_training_state(state, optimizer, args, num_samples=10)
    for _ in moments_of(resumed, args, optimizer, start):
        pass
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_resuming_another_run_is_refused():
    args, model = make_args(), make_model()
    optimizer = make_optimizer(model, args)
    state = training_state(optimizer, Position(1, 0, 3), [], args, num_samples=10)
    with pytest.raises(ValueError, match="batch_size was 4, is 8"):
        restore_training_state(state, optimizer, make_args(batch_size=8), num_samples=10)
    with pytest.raises(ValueError, match="training images was 10, is 9"):
        restore_training_state(state, optimizer, args, num_samples=9)
    with pytest.raises(ValueError, match="no training state"):
        restore_training_state(None, optimizer, args, num_samples=10)
