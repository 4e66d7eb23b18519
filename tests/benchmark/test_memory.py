import os
from functools import partial

import pytest
import torch

from common.benchmark.memory import peak_memory

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


def test_a_measuring_process_that_is_killed_is_named():
    with pytest.raises(ChildProcessError, match="the process that measures a model's memory died; .*close other"):
        peak_memory(os.abort, (1, 3, 8, 8), threads=1)
