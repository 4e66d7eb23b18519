"""What training does on a CUDA device beside computing, with PyTorch's own functions for it replaced."""

import pytest
import torch

from common.system.memory import PeakMemory, free_memory
from common.system.random_state import random_state, set_random_state
from common.training import steps
from common.training.accumulation import release
from common.training.settings import TrainingSettings
from common.training.steps import LoadedSteps, Plan, Position

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def calls(monkeypatch):
    """What is asked of CUDA, and what it answers."""
    made = []

    def answer(name, value):
        def function(*arguments):
            made.append((name, *arguments))
            return value

        monkeypatch.setattr(torch.cuda, name, function)

    answer("mem_get_info", (1000, 9999))
    answer("memory_reserved", 600)
    answer("memory_allocated", 200)
    answer("max_memory_allocated", 750)
    answer("reset_peak_memory_stats", None)
    answer("empty_cache", None)
    answer("get_rng_state", torch.tensor([1, 2, 3]))
    answer("set_rng_state", None)
    return made


def test_free_is_what_the_device_has_and_what_the_allocator_keeps(calls):
    assert free_memory(CUDA) == 1000 + 600 - 200
    assert ("mem_get_info", CUDA) in calls


def test_the_peak_is_that_of_the_device(calls):
    peak = PeakMemory(CUDA)
    assert calls[0] == ("reset_peak_memory_stats", CUDA)
    assert peak.growth() == 750 - 200


def test_the_device_s_random_numbers_are_kept_and_put_back(calls):
    state = random_state(CUDA)
    assert state["cuda"].tolist() == [1, 2, 3]
    set_random_state(state, CUDA)
    assert calls[-1][0] == "set_rng_state" and calls[-1][2] == CUDA


def test_a_run_on_the_cpu_asks_cuda_for_nothing(calls):
    free_memory(CPU)
    PeakMemory(CPU).growth()
    state = random_state(CPU)
    set_random_state({**state, "cuda": torch.tensor([1])}, CPU)  # of a checkpoint that was trained on a GPU
    release(CPU)
    assert calls == []
    release(CUDA)
    assert calls == [("empty_cache",)]


@pytest.mark.parametrize(("device", "pinned"), [(CUDA, True), (CPU, False)])
def test_images_are_pinned_for_a_gpu_alone(device, pinned, monkeypatch):
    """Pinning takes hold of the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = {}
    monkeypatch.setattr(steps, "DataLoader", lambda dataset, **options: asked.update(options) or [])
    LoadedSteps([], Plan.of(TrainingSettings(), 10), Position(), workers=0, device=device)
    assert asked["pin_memory"] is pinned
