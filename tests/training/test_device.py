"""`--device cpu` leaves the GPU of a machine alone: it may be busy, broken, or belong to somebody else."""

import pytest
import torch

from common.networks.checkpoints import read_checkpoint
from common.system.environment import environment
from common.training.resume import training_state
from common.training.steps import Position
from examples.make_scenes import write_dataset
from tests import tiny_run
from tests.command_lines import call


@pytest.fixture
def untouchable_gpu(monkeypatch):
    """A CUDA device is there, and whoever takes hold of it fails."""

    def refuse(*_):
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    with pytest.raises(AssertionError, match="initialised"):
        torch.zeros(1, device="cuda")
    return monkeypatch


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_on_the_cpu_leaves_the_gpu_alone(untouchable_gpu, tmp_path, workers):
    write_dataset(tmp_path, "Town", 20, seed=0, size=(48, 96))
    flags = ["-s", tmp_path / "out", "-r", tmp_path, "--datasets", "Town", "--workers", workers, "--batch_size", 6]
    call(tiny_run, [*flags, "-e", 1, "--device", "cpu"])
    call(tiny_run, [*flags, "-e", 2, "--device", "cpu", "--resume", "auto"])
    last = max((tmp_path / "out").glob("checkpoint_epoch_1_*"))
    assert [each["cuda"] for each in read_checkpoint(last).training["random"]] == [None]


def test_a_random_state_is_kept_of_a_gpu_in_use_alone(untouchable_gpu):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    state = training_state(optimizer, None, {}, Position(), [], torch.device("cpu"))
    assert [each["cuda"] for each in state["random"]] == [None]


def test_a_report_leaves_the_gpu_alone(untouchable_gpu):
    assert "gpu" in environment()
