import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data.pairs import Sample
from common.networks.checkpoints import Checkpoint, Description
from common.quantization.fake_quantize import FakeQuantize
from common.system.signals import StopRequest
from common.training.average import WeightAverage
from common.training.labelled import LabelledTask, Teacher, labelled_loss
from common.training.loop import train
from common.training.losses import distillation, weighted_cross_entropy
from common.training.precision import keep_fake_quantization_in_float32
from common.training.resume import fixed_settings, restore_training_state, training_state
from common.training.settings import DataSettings, QatRunSettings, QatSettings, TrainingSettings
from common.training.stepper import Learner, make_optimizer
from common.training.steps import Position
from tests.family import LABELS, NETWORK, format_of


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


SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=1e-2)
INTERVAL = 4  # images between checkpoints


def make_model(dropout=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))


def make_learner(model, settings=SETTINGS, teacher=None, **parts):
    loss = partial(labelled_loss, settings, CPU, teacher)
    return Learner(model, make_optimizer(model, settings), lambda epoch: model.train(), loss, **parts)


def moments_of(model, settings=SETTINGS, start=None, interval=INTERVAL, **parts):
    return moments_with(make_learner(model, settings, **parts), settings, start, interval)


def moments_with(learner, settings=SETTINGS, start=None, interval=INTERVAL):
    return train(learner, ToyData(), settings, CPU, start or Position(), checkpoint_interval=interval, workers=0)


def trained(model, settings=SETTINGS, **parts):
    for _ in moments_of(model, settings, **parts):
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
        trained(student, replace(SETTINGS, epochs=10), teacher=Teacher(teacher, weight, Path("fp32.pth")))
        with torch.no_grad():
            distances.append(distillation(student.eval()(images), teacher(images)))
    assert distances[1] < 0.5 * distances[0]


def test_checkpoints_are_due_within_and_after_each_epoch():
    positions = [moment.position for moment in moments_of(make_model(), replace(SETTINGS, epochs=2))]
    assert positions == [
        Position(0, 4, 1),
        Position(0, 8, 2),
        Position(1, 0, 3),
        Position(1, 4, 4),
        Position(1, 8, 5),
        Position(2, 0, 6),
    ]


def test_samples_per_epoch_bounds_the_epoch():
    positions = [m.position for m in moments_of(make_model(), replace(SETTINGS, epochs=1, samples_per_epoch=5))]
    assert positions == [Position(0, 4, 1), Position(1, 0, 2)]


def test_training_learns():
    losses = [moment.loss for moment in moments_of(make_model(), replace(SETTINGS, epochs=40), interval=1000)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_step_in_parts_is_the_step(parts):
    """Without batch statistics and dropout the gradient is that of the whole batch, also of the last one of 2 images.

    SGD, because Adam would make much of the rounding of gradients near 0.
    """

    def weights(parts):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1))
        settings = replace(SETTINGS, gradient_accumulation=parts, epochs=2)
        loss = partial(labelled_loss, settings, CPU, None)
        learner = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: None, loss)
        losses = [moment.loss for moment in moments_with(learner, settings)]
        return losses, model.state_dict()

    (losses, whole), (losses_in_parts, in_parts) = weights(1), weights(parts)
    torch.testing.assert_close(losses_in_parts, losses)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)


def test_a_signal_ends_the_run_after_its_step():
    stop = StopRequest()
    moments = moments_of(make_model(), interval=1000, stop=stop)
    stop.signal = 15
    (moment,) = moments
    assert moment.stopped
    assert moment.position == Position(0, 4, 1)
    assert not moment.position.due


def test_a_loss_that_is_no_number_stops_the_run():
    model = make_model()
    moments = moments_of(model)
    next(moments)
    nn.init.constant_(model[3].bias, torch.inf)
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        next(moments)


class Recorder(FakeQuantize):
    """Stands for a fake quantization: keeps what it is given."""

    def forward(self, x):
        self.seen = x.dtype
        return x


def test_bf16_computes_convolutions_in_bfloat16_and_fake_quantization_in_float32():
    recorder = Recorder()
    inner = []
    model = nn.Sequential(nn.Conv2d(3, 8, 1), recorder, nn.Conv2d(8, 3, 1))
    model[2].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    keep_fake_quantization_in_float32(model)
    (moment,) = moments_of(model, replace(SETTINGS, precision="bf16", epochs=1), interval=100)
    assert recorder.seen == torch.float32
    assert set(inner) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < moment.loss < 10


def checkpoint_with(state, arguments=None):
    """A checkpoint as it is read again; the weights are not looked at."""
    description = Description("Tiny", "fp32", 1.0, (4, 6), arguments=arguments or {})
    return Checkpoint(Path("c.pth"), {}, description, state)


def fixed(settings=SETTINGS, samples=(), input_hw=(4, 6), **run):
    task = LabelledTask(samples, (), NETWORK, format_of(input_hw), CPU)
    return fixed_settings(QatRunSettings(training=settings, **run), task.identity(), input_hw)


@pytest.mark.parametrize("stop_at", range(9))
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(stop_at, ema):
    settings = replace(SETTINGS, ema=ema, schedule="cosine", warmup_steps=2)
    model = make_model()
    unbroken_average = WeightAverage(model, 0.9)
    unbroken = trained(model, settings, average=unbroken_average)

    model = make_model()
    learner = make_learner(model, settings, average=WeightAverage(model, 0.9))
    for number, moment in enumerate(moments_with(learner, settings)):
        if number == stop_at:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            state = training_state(
                learner.optimizer, learner.average, fixed(settings), moment.position.scored(), [], CPU
            )
            break

    torch.manual_seed(99)
    resumed = make_model()
    resumed.load_state_dict(weights)
    learner = make_learner(resumed, settings, average=WeightAverage(resumed, 0.9))
    torch.randn(5)  # the random state of the new process is another one
    start, _ = restore_training_state(
        checkpoint_with(state), learner.optimizer, learner.average, fixed(settings), CPU, "miou"
    )
    for _ in moments_with(learner, settings, start):
        pass
    for key, value in unbroken.items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for value, same in zip(unbroken_average.averages, learner.average.averages, strict=True):
        assert torch.equal(value, same)


@pytest.fixture
def run_at_its_first_checkpoint(tmp_path):
    """A function that resumes it with other settings; it ends where the restoring does."""
    optimizer = make_optimizer(make_model(), SETTINGS)
    samples = [Sample("Town", tmp_path / f"{index}.png", tmp_path, LABELS) for index in range(10)]
    state = training_state(optimizer, None, fixed(samples=samples), Position(1, 0, 3), [], CPU)

    def resume(*, forget=(), arguments=None, samples=samples, **changes):
        kept = {**state, "fixed": {key: value for key, value in state["fixed"].items() if key not in forget}}
        now = fixed(**{"samples": samples, **changes})
        restore_training_state(checkpoint_with(kept, arguments), optimizer, None, now, CPU, "miou")

    return resume


def test_resuming_the_same_run_longer_is_allowed(run_at_its_first_checkpoint):
    run_at_its_first_checkpoint()
    run_at_its_first_checkpoint(settings=replace(SETTINGS, epochs=9))  # with a constant learning rate


OTHER_RUNS = {
    "batch_size": (replace(SETTINGS, batch_size=8), {}),
    "learning_rate": (replace(SETTINGS, learning_rate=0.1), {}),
    "precision": (replace(SETTINGS, precision="bf16"), {}),
    "gradient_accumulation": (replace(SETTINGS, gradient_accumulation=2), {}),
    "reduced_decode": (SETTINGS, {"data": DataSettings(reduced_decode=True)}),
    "freeze_observers": (SETTINGS, {"qat": QatSettings(freeze_observers=5)}),
    "per_channel": (SETTINGS, {"qat": QatSettings(per_channel=True)}),
    "fuse": (SETTINGS, {"qat": QatSettings(fuse=False)}),
    "keep_float": (SETTINGS, {"qat": QatSettings(keep_float=("head",))}),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_resuming_another_run_is_refused(name, run_at_its_first_checkpoint):
    settings, run = OTHER_RUNS[name]
    with pytest.raises(ValueError, match=rf"^--resume c\.pth: this would be another run: {name} was [^;]*, is [^;]*$"):
        run_at_its_first_checkpoint(settings=settings, **run)


def test_resuming_on_other_images_or_from_weights_alone_is_refused(run_at_its_first_checkpoint):
    with pytest.raises(ValueError, match="training images was 10 .*, is 0"):
        run_at_its_first_checkpoint(samples=[])
    with pytest.raises(ValueError, match="input size was 4,6, is 8,8"):
        run_at_its_first_checkpoint(qat=QatSettings(input_hw=(8, 8)))
    with pytest.raises(ValueError, match="no training state"):
        restore_training_state(checkpoint_with(None), None, None, fixed(), CPU, "miou")


def test_what_an_earlier_version_did_not_compare_is_taken_from_its_flags(run_at_its_first_checkpoint):
    """Before `--fuse` was compared, it was among the flags that a checkpoint keeps."""
    run_at_its_first_checkpoint(forget=["fuse"], arguments={"fuse": True})
    with pytest.raises(ValueError, match="fuse was False, is True$"):
        run_at_its_first_checkpoint(forget=["fuse"], arguments={"fuse": False})


def misshapen(state):
    state["state"][0]["exp_avg"] = torch.zeros(7)
    return state


# an entry of a training state: what damages it
DAMAGES = {
    "optimizer": [lambda entry: "x", lambda entry: {"state": {}, "param_groups": []}, misshapen],
    "average": [lambda entry: 5, lambda entry: {"n_averaged": torch.tensor(1)}],
    "position": [lambda entry: {"epoch": "x"}, lambda entry: {"step": -9}, lambda entry: {"tomorrow": 1}],
    "history": [lambda entry: None, lambda entry: [1, 2]],
    "random": [lambda entry: "abc", lambda entry: [{"cpu": torch.zeros(5, dtype=torch.uint8), "cuda": None}]],
    "fixed": [lambda entry: [1]],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in DAMAGES for number in range(len(DAMAGES[name]))]
)
def test_a_damaged_training_state_is_refused_before_the_first_step(name, number):
    settings, model = replace(SETTINGS, ema=0.9, epochs=1), make_model()
    learner = make_learner(model, settings, average=WeightAverage(model, 0.9))
    *_, moment = moments_with(learner, settings)
    state = training_state(learner.optimizer, learner.average, fixed(settings), moment.position, [{"miou": 0.5}], CPU)

    def restore(state):
        restore_training_state(checkpoint_with(state), learner.optimizer, learner.average, fixed(settings), CPU, "miou")

    restore(copy.deepcopy(state))
    state[name] = DAMAGES[name][number](copy.deepcopy(state[name]))
    with pytest.raises(ValueError, match=r"^--resume c\.pth: its training state is damaged.* earlier checkpoint$"):
        restore(state)
