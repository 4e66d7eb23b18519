"""Steps in parts: how many by the free memory, more of them where it runs out, and nothing else changes for it."""

import copy
import logging
import multiprocessing
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.data.loading import Example
from common.quantization.pt2e import prepare_qat, set_mode
from common.quantization.settings import QuantizationSettings
from common.training import accumulation
from common.training.accumulation import Accumulation, StepState, fitting_parts
from common.training.labelled import labelled_loss
from common.training.loop import train
from common.training.settings import TrainingSettings
from common.training.stepper import Learner, make_optimizer

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-2)
GB = 10**9
REFUSED = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"


class ToyData(torch.utils.data.Dataset):
    """Twenty images with targets that depend on the image."""

    def __init__(self, hw=(4, 6)):
        self.hw = hw

    def __len__(self):
        return 20

    def __getitem__(self, draw):
        image = torch.randn(3, *self.hw, generator=torch.Generator().manual_seed(100 * draw[0] + draw[1]))
        return image, image.argmax(dim=0), torch.ones(3)


class Short(nn.Module):
    """Runs out of memory with more than `most` images, after the modules before it have changed their state."""

    def __init__(self, most, from_call=0, error=RuntimeError):
        super().__init__()
        self.most, self.calls, self.from_call, self.error = most, 0, from_call, error

    def forward(self, x):
        self.calls += 1
        if self.calls > self.from_call and len(x) > self.most:
            raise self.error(REFUSED)
        return x


def make_model(last=None):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 3, 1), last or nn.Identity())
    )


def trained(model, parts, adapts=True, later=None):
    """The number of parts at the end and the state; `later` is the number that the second epoch is told to take."""
    learner = Learner(
        model,
        make_optimizer(model, SETTINGS),
        lambda epoch: model.train(),
        partial(labelled_loss, SETTINGS, CPU, None),
        accumulation=Accumulation(parts, adapts),
    )
    for moment in train(learner, ToyData(), SETTINGS, CPU, checkpoint_interval=100, workers=0):
        if later and moment.position.epoch == 1:
            learner.accumulation.parts = later
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return learner.accumulation.parts, {**state, "random": torch.get_rng_state()}


def assert_equal(actual, expected):
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize(("most", "parts"), [(4, 2), (2, 4), (1, 8)])
def test_a_step_that_does_not_fit_is_computed_again_in_more_parts(most, parts, error, caplog):
    actual, state = trained(make_model(Short(most, error=error)), 1)
    assert actual == parts
    assert_equal(state, trained(make_model(), parts)[1])
    assert f"computed again in {parts} parts of {most} image(s)" in caplog.text


def test_a_step_that_no_longer_fits_is_divided_from_there_on():
    """The first epoch of three steps in one part, the second in two."""
    parts, state = trained(make_model(Short(4, from_call=3)), 1)
    assert parts == 2
    assert_equal(state, trained(make_model(), 1, later=2)[1])


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_prepared_graph_keeps_no_trace_of_the_attempt_that_failed(per_channel, tiny_network):
    """Neither in batch norm nor in the ranges, which by channel get their size in it."""
    graph = prepare_qat(tiny_network, (8, 16), QuantizationSettings(per_channel=per_channel))
    set_mode(graph, dropout=True, batch_norm=True, observers=True)
    states = []
    for last, parts in ((Short(4), 1), (nn.Identity(), 2)):
        model = nn.Sequential(copy.deepcopy(graph), nn.Upsample(scale_factor=2), last)
        learner = Learner(
            model,
            make_optimizer(model, SETTINGS),
            lambda epoch: None,
            partial(labelled_loss, SETTINGS, CPU, None),
            accumulation=Accumulation(parts, adapts=True),
        )
        torch.manual_seed(0)
        for _ in train(learner, ToyData((8, 16)), SETTINGS, CPU, checkpoint_interval=100, workers=0):
            pass
        assert learner.accumulation.parts == 2
        states.append(model.state_dict())
    assert_equal(*states)


def test_parts_that_were_asked_for_are_not_divided():
    with pytest.raises(RuntimeError, match="can't allocate"):
        trained(make_model(Short(4)), 1, adapts=False)


def test_a_single_image_that_does_not_fit_ends_the_run():
    with pytest.raises(RuntimeError, match="can't allocate"):
        trained(make_model(Short(0)), 1)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        trained(make_model(Short(4, error=lambda text: ZeroDivisionError())), 1)


class PerImage(nn.Module):
    """A range with a size of its own from the first image on, as ranges by channel have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(0))

    def forward(self, x):
        self.largest.resize_(x.shape[1]).copy_(x.detach().amax(dim=(0, 2, 3)))
        return x


def test_a_state_is_put_back_with_its_shapes():
    module = PerImage()
    state = StepState(module, CPU)
    state.take()
    module(torch.ones(1, 5, 2, 2))
    torch.rand(3)
    assert module.largest.shape == (5,)
    state.restore()
    assert module.largest.shape == (0,)
    assert torch.equal(torch.get_rng_state(), state.random["cpu"])


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the free memory; a step takes 2 GB, and 0.5 for each image."""

    class Peak:
        images = 0

        def __init__(self, device):
            pass

        def growth(self):
            return 2 * GB + Peak.images * GB // 2

    def loss_of(model, part):
        Peak.images = max(Peak.images, len(part[0]))
        return model(part[0]).mean()

    monkeypatch.setattr(accumulation, "PeakMemory", Peak)
    monkeypatch.setattr(accumulation.gc, "collect", lambda: None)  # of all that the tests have imported

    def with_free(gigabytes):
        Peak.images = 0
        monkeypatch.setattr(
            accumulation, "free_memory", lambda device: int(gigabytes * GB / (1 - accumulation.RESERVE))
        )
        return loss_of

    return with_free


BATCH = Example(torch.randn(8, 3, 4, 6), torch.zeros(8, 4, 6, dtype=torch.long), torch.ones(8, 3))


@pytest.mark.parametrize(
    ("free", "share", "parts"),
    [
        *((2.51 * 8, 8, 1), (6.01, 8, 1), (5.99, 8, 2), (4.01, 8, 2), (3.99, 8, 4), (3.01, 8, 4), (2.99, 8, 8)),
        *((2.51, 8, 8), (0, 8, 8), (3.01, 6, 4), (0, 6, 6), (0, 1, 1)),
    ],
)
def test_parts_are_as_few_as_fit(free, share, parts, machine, caplog):
    caplog.set_level(logging.INFO)
    assert fitting_parts(machine(free), make_model().train(), BATCH, share, 0, CPU) == parts
    line, *warnings = caplog.text.splitlines()
    assert f"auto: {parts} part(s) of {-(-share // parts)} image(s); one image takes 2.50 GB" in line
    assert len(warnings) == (parts > 1 and share // parts < 8)
    assert all("--freeze_batch_norm 0" in warning for warning in warnings)


def test_images_that_wait_in_the_loader_need_room_too(machine, monkeypatch):
    loss_of, model = machine(6.01), make_model().train()
    assert fitting_parts(loss_of, model, BATCH, 8, 10**6, CPU) == 8


def test_what_cannot_be_measured_for_want_of_memory_is_taken_image_by_image(machine):
    machine(100)

    def loss_of(model, part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting_parts(loss_of, make_model().train(), BATCH, 8, 0, CPU) == 8


def test_measuring_changes_nothing(monkeypatch):
    """Neither weights, batch norm nor random numbers, whether one image tells enough or two are needed."""
    expected = trained(make_model(), 1)
    for free in (10**12, 10**8):
        monkeypatch.setattr(accumulation, "free_memory", lambda device, free=free: free)
        monkeypatch.setattr(accumulation.PeakMemory, "growth", lambda self: 2 * 10**7)  # two images as much as one
        parts, state = trained(make_model(), None)
        assert parts == 1
        assert_equal(state, expected[1])


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    accumulation.free_memory = lambda device: (10**12, 0)[rank]
    chosen, _ = trained(make_model(), None)
    divided, state = trained(make_model(Short(2 if rank else 99, from_call=2)), 1)
    torch.save((chosen, divided, state), folder / f"{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path):
    """The one with less free memory decides for both; where it runs out of it, both compute the step again."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    (chosen, divided, state), other = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert (chosen, divided) == (other[0], other[1]) == (4, 2)
    for key in ("0.weight", "3.weight"):
        assert torch.equal(state[key], other[2][key])
