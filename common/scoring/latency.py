"""Timing: what is inside the clock, when a model is warm, and the figures that come out."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from common.scoring.percentiles import CALLS_FOR_P90, CALLS_FOR_P99

T = TypeVar("T")

STEADY = 0.05  # a block of warm-up whose median is not faster by this share than the one before: the model is warm
WARMUP_BLOCK = 0.2  # seconds, and at least one run: scatter of short runs averages out, long runs have little
MOST_BLOCKS = 8  # of warm-up beyond the asked-for runs; a machine that is not steady by then is measured as it is
OUTLIER_DEVIATIONS = 5  # standard deviations, estimated from the median absolute deviation
DEVIATION_OF_MAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution


@dataclass(frozen=True)
class Latency:
    """Figures of `n` timed calls, in milliseconds; no call is dropped."""

    mean: float
    p50: float
    p90: float | None  # None below 10 calls
    p99: float | None  # None below 100 calls
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

    A percentile of fewer calls than it takes for one of them to lie beyond it is the largest call by another name, so
    that there is none.

    Raises:
        ValueError: no call was timed.
    """
    if not len(seconds):
        raise ValueError("no timed call to summarise; time at least one")
    ms = 1000 * np.asarray(seconds)
    p50, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
    mad = float(np.median(np.abs(ms - p50)))
    return Latency(
        mean=float(np.mean(ms)),
        p50=p50,
        p90=p90 if len(ms) >= CALLS_FOR_P90 else None,
        p99=p99 if len(ms) >= CALLS_FOR_P99 else None,
        min=float(np.min(ms)),
        max=float(np.max(ms)),
        mad=mad,
        outliers=int(np.count_nonzero(ms > p50 + OUTLIER_DEVIATIONS * DEVIATION_OF_MAD * mad)),
        n=len(ms),
    )


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
    steady: bool  # the last block was not faster than the one before
    block_medians_ms: tuple[float, ...]


def warm_up(call: Callable[[], object], runs: int) -> WarmUp:
    """Call at least `runs` times, and on until a block is not faster than the one before or MOST_BLOCKS more are spent.

    Caches fill, memory is allocated, kernels are chosen, the clock of the processor settles: all make a model faster.
    One that gets slower is warm, and its machine is not steady, which the blocks of the measurement show. 0 runs: none.
    """
    medians: list[float] = []
    done = extra = 0
    while runs and extra < MOST_BLOCKS and not (done >= runs and _steady(medians)):
        extra += done >= runs
        block = _block(call)
        medians.append(float(np.median(block)))
        done += len(block)
    return WarmUp(done, _steady(medians), tuple(1000 * median for median in medians))


def _block(call: Callable[[], object]) -> list[float]:
    """The seconds of the runs that fill WARMUP_BLOCK."""
    seconds = [timed(call)[1]]
    while sum(seconds) < WARMUP_BLOCK:
        seconds.append(timed(call)[1])
    return seconds


def _steady(medians: Sequence[float]) -> bool:
    return len(medians) > 1 and medians[-1] >= (1 - STEADY) * medians[-2]


def interleaved_latency(
    calls: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1, untimed: int = 0
) -> dict[str, Latency]:
    """Time several calls turn by turn, so that a drift of the machine hits all alike.

    Args:
        warmup: whole turns before the first that counts.
        untimed: calls right before each timed one, as in a stream of images: without them a model finds the caches full
            of another's weights, and a processor that the model before did not use asleep.
    """
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    with no_garbage_collection():
        for turn in range(warmup + runs):
            for label, call in calls.items():
                for _ in range(untimed):
                    call()
                _, elapsed = timed(call)
                if turn >= warmup:
                    seconds[label].append(elapsed)
    return {label: latency(measured) for label, measured in seconds.items()}
