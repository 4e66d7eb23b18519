"""Timing: what is inside the clock, and the percentiles that come out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Percentiles of `n` timed calls, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
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
    return Latency(*(float(1000 * value) for value in (np.mean(seconds), p50, p90, p99)), n=len(seconds))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of `call()` and the seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def interleaved_latency(calls: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1) -> dict[str, Latency]:
    """Time several calls turn by turn, so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(warmup + runs):
        for label, call in calls.items():
            _, elapsed = timed(call)
            if turn >= warmup:
                seconds[label].append(elapsed)
    return {label: latency(measured) for label, measured in seconds.items()}
