import os
from functools import partial

import pytest
import torch

from common.benchmark import memory
from common.benchmark.memory import peak_memory
from common.system.memory import CLEAR_REFS, peak_resident

MEGABYTE = 1_000_000


class Hungry:
    """A predictor that holds `size` bytes and takes as much again, for a moment, in a call."""

    def __init__(self, size):
        self.weights = torch.ones(size // 4)

    def __call__(self, images):
        return self.weights * 2


def test_peak_memory_is_that_of_the_model_alone():
    ballast = torch.ones(100 * MEGABYTE)  # this process's own memory is not counted
    small = peak_memory(partial(Hungry, 40 * MEGABYTE), (1, 3, 8, 8), threads=1)
    large = peak_memory(partial(Hungry, 160 * MEGABYTE), (1, 3, 8, 8), threads=1)
    assert 60 * MEGABYTE < small.model < 140 * MEGABYTE
    assert 200 * MEGABYTE < large.model - small.model < 280 * MEGABYTE
    assert large.process > large.model
    del ballast


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="needs clear_refs (Linux)")
def test_what_the_process_took_before_is_not_the_models():
    """The peak of the imports, or of whatever came first, is forgotten: here of 400 MB that are free again."""
    del (ballast := [torch.ones(100 * MEGABYTE)])[:]
    assert peak_resident() > 400 * MEGABYTE
    measured = memory._measure(partial(Hungry, 40 * MEGABYTE), (1, 3, 8, 8), threads=torch.get_num_threads(), runs=2)
    assert measured.model < 200 * MEGABYTE
    assert not ballast


class OnCuda(Hungry):
    """A predictor whose device holds 7 bytes at its peak."""

    def __call__(self, images):
        assert not torch.backends.cudnn.allow_tf32
        return super().__call__(images)


def test_the_memory_of_a_device_is_its_peak_and_times_are_of_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    assert memory._measure(partial(OnCuda, 4), (1, 3, 8, 8), threads=torch.get_num_threads(), runs=1).device == 7


def test_a_measuring_process_that_is_killed_is_named():
    with pytest.raises(ChildProcessError, match="the process that measures a model's memory died; .*close other"):
        peak_memory(os.abort, (1, 3, 8, 8), threads=1)
