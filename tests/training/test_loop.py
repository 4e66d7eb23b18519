import argparse
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data.datasets import Sample
from common.system.signals import StopRequest
from common.training.loop import Learner, distillation, make_optimizer, train, weighted_cross_entropy
from common.training.precision import keep_fake_quantization_in_float32
from common.training.resume import fixed_settings, restore_training_state, training_state
from common.training.schedule import WeightAverage
from common.training.steps import Position


class ToyData(torch.utils.data.Dataset):
    """Ten images of 4x6 with targets that depend on the image; indexed as `AugmentedDataset` is."""

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        epoch, index = draw
        generator = torch.Generator().manual_seed(100 * epoch + index)
        image = torch.randn(3, 4, 6, generator=generator)
        return image, image.argmax(dim=0), torch.rand(3, generator=generator) + 0.1


CPU = torch.device("cpu")


def make_args(**changes):
    flags = {
        "epochs": 3,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "precision": "fp32",
        "learning_rate": 1e-2,
        "weight_decay": 1e-5,
        "schedule": "constant",
        "warmup_steps": 0,
        "ema": 0.0,
        "distill": 0.0,
        "unweighted_loss": False,
        "augmentation": 0.5,
        "samples_per_epoch": None,
        "checkpoint_interval": 4,
        "seed": 0,
        "workers": 0,
        "input_hw": None,
    }
    return argparse.Namespace(**{**flags, **changes})


def make_model(dropout=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))


def make_learner(model, args, **parts):
    return Learner(model, make_optimizer(model, args), lambda epoch: model.train(), **parts)


def moments_of(model, args, start=None, **parts):
    return train(make_learner(model, args, **parts), ToyData(), args, CPU, start or Position())


def trained(model, args, **parts):
    for _ in moments_of(model, args, **parts):
        pass
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_weighted_loss_equals_the_mean_of_the_images_alone():
    torch.manual_seed(0)
    logits, target, weights = torch.randn(4, 3, 5, 7), torch.randint(3, (4, 5, 7)), torch.rand(4, 3) + 0.1
    alone = [F.cross_entropy(logits[i : i + 1], target[i : i + 1], weight=weights[i]) for i in range(4)]
    torch.testing.assert_close(weighted_cross_entropy(logits, target, weights), torch.stack(alone).mean())


def test_distillation_by_hand():
    """One pixel, two classes: teacher 3/4 and 1/4, student 1/2 and 1/2."""
    teacher, student = torch.tensor([0.75, 0.25]).log().reshape(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(distillation(student, teacher), expected)
    assert distillation(teacher + 3, teacher).abs() < 1e-6


def test_a_teacher_is_learned():
    teacher = make_model(dropout=0.0).eval()
    nn.init.normal_(teacher[0].weight)
    images = torch.randn(8, 3, 4, 6)
    distances = []
    for weight in (0.0, 30.0):
        student = make_model(dropout=0.0)
        nn.init.normal_(student[3].weight)
        trained(student, make_args(epochs=10, distill=weight), teacher=teacher)
        with torch.no_grad():
            distances.append(distillation(student.eval()(images), teacher(images)))
    assert distances[1] < 0.5 * distances[0]


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


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_step_in_parts_is_the_step(parts):
    """Without batch statistics and dropout the gradient is that of the whole batch, also of the last one of 2 images.

    SGD, because Adam would make much of the rounding of gradients near 0.
    """

    def weights(parts):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1))
        args = make_args(gradient_accumulation=parts, epochs=2)
        learner = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: None)
        losses = [moment.loss for moment in train(learner, ToyData(), args, CPU, Position())]
        return losses, model.state_dict()

    (losses, whole), (losses_in_parts, in_parts) = weights(1), weights(parts)
    torch.testing.assert_close(losses_in_parts, losses)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)


def test_a_signal_ends_the_run_after_its_step():
    stop = StopRequest()
    moments = moments_of(make_model(), make_args(checkpoint_interval=1000), stop=stop)
    stop.signal = 15
    (moment,) = moments
    assert moment.stopped
    assert moment.position == Position(0, 4, 1)
    assert not moment.position.due


def test_a_loss_that_is_no_number_stops_the_run():
    model = make_model()
    moments = moments_of(model, make_args())
    next(moments)
    nn.init.constant_(model[3].bias, torch.inf)
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        next(moments)


def test_averaged_weights_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, decay=0.5)
    for value in (2.0, 3.0):
        nn.init.constant_(layer.weight, value)
        average.update()
    with average.applied():  # decay 1/10, then 2/11: 0.1 * 1 + 0.9 * 2 = 1.9, 2/11 * 1.9 + 9/11 * 3 = 2.8
        torch.testing.assert_close(layer.weight.item(), 2.8)
    assert layer.weight.item() == 3.0


class Recorder(nn.Module):
    """Stands for a fake quantization: keeps what it is given."""

    fake_quant_enabled = True

    def calculate_qparams(self):
        raise NotImplementedError

    def forward(self, x):
        self.seen = x.dtype
        return x


def test_bf16_computes_convolutions_in_bfloat16_and_fake_quantization_in_float32():
    recorder = Recorder()
    inner = []
    model = nn.Sequential(nn.Conv2d(3, 8, 1), recorder, nn.Conv2d(8, 3, 1))
    model[2].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    keep_fake_quantization_in_float32(model)
    (moment,) = moments_of(model, make_args(precision="bf16", epochs=1, checkpoint_interval=100))
    assert recorder.seen == torch.float32
    assert set(inner) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < moment.loss < 10


@pytest.mark.parametrize("stop_at", range(9))
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(stop_at, ema):
    args = make_args(ema=ema, schedule="cosine", warmup_steps=2)
    fixed = fixed_settings(args, [], (4, 6))
    model = make_model()
    unbroken_average = WeightAverage(model, 0.9)
    unbroken = trained(model, args, average=unbroken_average)

    model = make_model()
    learner = make_learner(model, args, average=WeightAverage(model, 0.9))
    for number, moment in enumerate(train(learner, ToyData(), args, CPU, Position())):
        if number == stop_at:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            state = training_state(learner.optimizer, learner.average, fixed, moment.position.scored(), [])
            break

    torch.manual_seed(99)
    resumed = make_model()
    resumed.load_state_dict(weights)
    learner = make_learner(resumed, args, average=WeightAverage(resumed, 0.9))
    torch.randn(5)  # the random state of the new process is another one
    start, _ = restore_training_state(state, "c.pth", learner.optimizer, learner.average, fixed)
    for _ in train(learner, ToyData(), args, CPU, start):
        pass
    for key, value in unbroken.items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for key, value in unbroken_average.averages.items():
        assert torch.equal(value, learner.average.averages[key]), key


def test_resuming_another_run_is_refused(tmp_path):
    args, model = make_args(), make_model()
    optimizer = make_optimizer(model, args)
    samples = [Sample("Town", tmp_path / f"{index}.png", tmp_path) for index in range(10)]
    state = training_state(optimizer, None, fixed_settings(args, samples, (4, 6)), Position(1, 0, 3), [])

    def restore(state, args=args, samples=samples, input_hw=(4, 6)):
        restore_training_state(state, "c.pth", optimizer, None, fixed_settings(args, samples, input_hw))

    restore(state)
    restore(state, make_args(epochs=9))  # with a constant learning rate a run can be made longer
    for changes in (
        {"batch_size": 8},
        {"learning_rate": 0.1},
        {"precision": "bf16"},
        {"gradient_accumulation": 2},
        {"freeze_observers": 5},
    ):
        ((flag, value),) = changes.items()
        with pytest.raises(ValueError, match=f"another run: {flag} was .*, is {value}$"):
            restore(state, make_args(**changes))
    with pytest.raises(ValueError, match="training images was 10 .*, is 9"):
        restore(state, samples=samples[1:])
    with pytest.raises(ValueError, match="input size was 4,6, is 8,8"):
        restore(state, make_args(input_hw=(8, 8)))
    with pytest.raises(ValueError, match="no training state"):
        restore(None)


def misshapen(state):
    state["state"][0]["exp_avg"] = torch.zeros(7)
    return state


# an entry of a training state: what damages it
DAMAGES = {
    "optimizer": [lambda entry: "x", lambda entry: {"state": {}, "param_groups": []}, misshapen],
    "average": [lambda entry: 5, lambda entry: {"updates": 1, "averages": {}}],
    "position": [lambda entry: {"epoch": "x"}, lambda entry: {"step": -9}, lambda entry: {"tomorrow": 1}],
    "history": [lambda entry: None, lambda entry: [1, 2]],
    "random": [lambda entry: "abc", lambda entry: [{"cpu": torch.zeros(5, dtype=torch.uint8), "cuda": None}]],
    "fixed": [lambda entry: [1]],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in DAMAGES for number in range(len(DAMAGES[name]))]
)
def test_a_damaged_training_state_is_refused_before_the_first_step(name, number):
    args, model = make_args(ema=0.9, epochs=1), make_model()
    learner = make_learner(model, args, average=WeightAverage(model, 0.9))
    fixed = fixed_settings(args, [], (4, 6))
    *_, moment = train(learner, ToyData(), args, CPU, Position())
    state = training_state(learner.optimizer, learner.average, fixed, moment.position, [{"miou": 0.5}])
    restore_training_state(copy.deepcopy(state), "c.pth", learner.optimizer, learner.average, fixed)
    state[name] = DAMAGES[name][number](copy.deepcopy(state[name]))
    with pytest.raises(ValueError, match=r"^--resume c\.pth: its training state is damaged.* earlier checkpoint$"):
        restore_training_state(state, "c.pth", learner.optimizer, learner.average, fixed)
