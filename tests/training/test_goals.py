"""What an output's distance from the teacher's is, and how several outputs are weighed against each other."""

import math

import pytest
import torch
from torch import nn

from common.training.goals import Goal, as_records, from_records, measure_goals
from common.training.losses import relative_error
from models import Network


def test_the_relative_error_by_hand():
    """Channel 0: errors 1 and 3, variance 4; channel 1: errors 0 and 2, variance 1."""
    teacher = torch.tensor([[[10.0, 20.0], [1.0, 2.0]]])
    student = teacher + torch.tensor([[[1.0, -3.0], [0.0, 2.0]]])
    expected = ((1 + 9) / 2 / 4 + 4 / 2 / 1) / 2
    torch.testing.assert_close(relative_error(student, teacher, torch.tensor([4.0, 1.0])), torch.tensor(expected))
    # metres or millimetres, and from wherever they are counted
    scaled = relative_error(1000 * student + 7, 1000 * teacher + 7, 1e6 * torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(scaled, torch.tensor(expected))
    alone = relative_error(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 3.0]), torch.tensor([2.0]))
    torch.testing.assert_close(alone, torch.tensor((1 + 4) / 2 / 2))


class Outputs(nn.Module):
    """Classes, a distance and a flag of an image, with an error that is the same for all."""

    def __init__(self, error=0.0, flag=1.0):
        super().__init__()
        self.error, self.flag = error, flag

    def forward(self, x):
        logits = torch.cat([x, -x], dim=1)
        return logits + self.error * logits.sign(), 1000 * x.mean(dim=(2, 3)) + self.error, self.flag * x[:, :, 0, 0]


NETWORK = Network(Outputs, (1, 2, 3), mean=None, std=None, outputs={"classes": "", "distance": "", "flag": ""})


def batches():
    return torch.randn(12, 1, 2, 3, generator=torch.Generator().manual_seed(0)).split(5)


def test_every_output_counts_the_same_at_the_start():
    teacher, student = Outputs(), Outputs(0.25)
    goals = measure_goals(NETWORK, teacher, student, batches())
    assert [(goal.name, goal.kind) for goal in goals] == [
        ("classes", "classes"),
        ("distance", "values"),
        ("flag", "values"),
    ]
    images = torch.cat(batches())
    expected, actual = teacher(images), student(images)
    for goal, one, other in zip(goals[:2], actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(goal.distance(one, other), torch.tensor(1.0))
    assert goals[1].scales == pytest.approx([expected[1].var(correction=0).item()], rel=1e-4)
    assert goals[2].error_weight == pytest.approx(1e9)  # exact already: a limit, not infinity


def test_a_channel_that_is_lost_counts_once():
    """Of two, the first is off by a tenth of its deviation, the second is 0 where it ought to be about 5."""

    class Two(nn.Module):
        def __init__(self, lost):
            super().__init__()
            self.lost = lost

        def forward(self, x):
            return torch.cat([100 * x + self.lost, 0 * x if self.lost else 1e-3 * x + 5], dim=1)

    network = Network(Two, (1, 2, 3), mean=None, std=None, outputs={"boxes": ""}, task="detection")
    (goal,) = measure_goals(network, Two(0.0), Two(10.0), batches())
    images = torch.cat(batches())
    variance = images.var(correction=0).item()
    assert goal.scales == pytest.approx([1e4 * variance, 25], rel=0.01)
    assert 1 / goal.error_weight == pytest.approx((0.01 / variance + 1) / 2, rel=0.05)


@pytest.mark.parametrize(("flag", "told"), [(0.0, "the same everywhere"), (math.nan, "no number")])
def test_an_output_that_says_nothing_is_refused(flag, told):
    with pytest.raises(ValueError, match=f"output flag is {told}"):
        measure_goals(NETWORK, Outputs(flag=flag), Outputs(0.1, flag), batches())


def test_goals_survive_a_checkpoint():
    goals = (Goal("depth", "values", (0.1, 1 / 3), 2.5), Goal("logits", "classes", (1.0,), 0.5, 7.0))
    assert from_records(as_records(goals)) == goals


def test_what_an_output_is_follows_from_task_and_shape_or_is_said():
    def kind(shape, task="segmentation", **options):
        return Network(Outputs, (3, 2, 2), task=task, outputs={"out": ""}, **options).kind_of("out", shape)

    assert kind((1, 3, 8, 8)) == "classes"
    assert kind((1, 1, 8, 8)) == "logits"
    assert kind((1, 2)) == kind((1,)) == kind((1, 1, 8, 8), task="depth") == "values"
    assert kind((1, 3, 8, 8), task="lanes") == "logits"
    assert kind((1, 61), task="steering") == "classes"
    assert kind((1, 2, 8, 8), output_kinds={"out": "values"}) == "values"
    with pytest.raises(ValueError, match="output_kinds.*'maps', wanted classes, logits, values"):
        kind((1, 2, 8, 8), output_kinds={"out": "maps"})
    with pytest.raises(ValueError, match="output_kinds is 'depth', wanted the name of an output"):
        kind((1, 2, 8, 8), output_kinds={"depth": "values"})
