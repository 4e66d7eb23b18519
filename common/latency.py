"""Timing: what is inside the clock, when a model is warm, and the figures that come out."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

STEADY = 0.05  # medians of two blocks of warm-up that agree within this share: the model is warm
WARMUP_BLOCK = 2  # runs
MOST_EXTRA_RUNS = 8  # beyond the asked-for warm-up; a machine that is not steady by then is measured as it is
OUTLIER_DEVIATIONS = 5  # standard deviations, estimated from the median absolute deviation
DEVIATION_OF_MAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution


@dataclass(frozen=True)
class Latency:
    """Figures of `n` timed calls, in milliseconds; no call is dropped."""

    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    mad: float  # median absolute deviation from p50: the noise of a single call
    outliers: int  # calls that took longer than p50 by OUTLIER_DEVIATIONS
    n: int

    @property
    def per_second(self) -> float:
        """Throughput: calls per second, one after the other."""
        return 1000 / self.mean


def latency(seconds: Sequence[float]) -> Latency:
    """Summarise timed calls; percentiles interpolate linearly between the calls.

    Raises:
        ValueError: no call was timed.
    """
    if not len(seconds):
        raise ValueError("no timed call to summarise; time at least one")
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
    mad = np.median(np.abs(np.asarray(seconds) - p50))
    figures = (np.mean(seconds), p50, p90, p99, np.min(seconds), np.max(seconds), mad)
    outliers = np.count_nonzero(np.asarray(seconds) > p50 + OUTLIER_DEVIATIONS * DEVIATION_OF_MAD * mad)
    return Latency(*(float(1000 * value) for value in figures), outliers=int(outliers), n=len(seconds))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of `call()` and the seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of what is timed within."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class WarmUp:
    """The untimed runs of a model before the clock starts."""

    runs: int
    steady: bool  # the medians of the last two blocks agreed
    block_medians_ms: tuple[float, ...]


def warm_up(call: Callable[[], object], runs: int) -> WarmUp:
    """Call at least `runs` times, and on until the medians of two blocks agree or MOST_EXTRA_RUNS are spent.

    Caches fill, memory is allocated, kernels are chosen, the clock of the processor settles. 0 runs: none at all.
    """
    seconds: list[float] = []
    while runs and len(seconds) < runs + MOST_EXTRA_RUNS and not (len(seconds) >= runs and _steady(seconds)):
        seconds.append(timed(call)[1])
    return WarmUp(len(seconds), _steady(seconds), tuple(1000 * median for median in _block_medians(seconds)))


def _block_medians(seconds: Sequence[float]) -> list[float]:
    """The medians of whole blocks, counted from the end."""
    ends = range(len(seconds), WARMUP_BLOCK - 1, -WARMUP_BLOCK)
    return [float(np.median(seconds[end - WARMUP_BLOCK : end])) for end in ends][::-1]


def _steady(seconds: Sequence[float]) -> bool:
    medians = _block_medians(seconds)
    return len(medians) > 1 and abs(medians[-1] - medians[-2]) <= STEADY * medians[-2]


def interleaved_latency(calls: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1) -> dict[str, Latency]:
    """Time several calls turn by turn, so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    with no_garbage_collection():
        for turn in range(warmup + runs):
            for label, call in calls.items():
                _, elapsed = timed(call)
                if turn >= warmup:
                    seconds[label].append(elapsed)
    return {label: latency(measured) for label, measured in seconds.items()}


def pin(cpus: Sequence[int]) -> None:
    """Keep this process, its threads and its children to come on these processors.

    Raises:
        ValueError: the system has no such call, or this process may not use one of them.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--pin: this system cannot bind a process to processors; leave the flag out")
    allowed = os.sched_getaffinity(0)
    if absent := sorted(set(cpus) - allowed):
        raise ValueError(f"--pin: no processor {absent[0]} for this process; it may use {sorted(allowed)}")
    os.sched_setaffinity(0, set(cpus))
