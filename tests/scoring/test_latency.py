import gc
from functools import partial

import pytest

from common.scoring.latency import (
    MOST_BLOCKS,
    Latency,
    interleaved_latency,
    latency,
    no_garbage_collection,
    timed,
    warm_up,
)


def test_figures_of_a_hundred_and_one_known_calls():
    result = latency([milliseconds / 1000 for milliseconds in range(1, 102)])  # 1, 2, ..., 101 ms
    assert result == Latency(
        mean=pytest.approx(51),
        p50=pytest.approx(51),
        p90=pytest.approx(91),
        p99=pytest.approx(100),
        min=pytest.approx(1),
        max=pytest.approx(101),
        mad=pytest.approx(25),  # distances 0, 1, 1, 2, 2, ..., 50, 50
        outliers=0,
        n=101,
    )
    assert result.per_second == pytest.approx(1000 / 51)


def test_an_outlier_is_counted_and_kept():
    result = latency([0.010, 0.011, 0.012, 0.011, 0.200])
    assert (result.outliers, result.n) == (1, 5)
    assert result.max == pytest.approx(200)


def test_no_call_is_an_error():
    with pytest.raises(ValueError, match="time at least one"):
        latency([])


@pytest.mark.parametrize(("calls", "p90", "p99"), [(9, 0, 0), (10, 1, 0), (99, 1, 0), (100, 1, 1)])
def test_a_percentile_needs_calls_beyond_it(calls, p90, p99):
    result = latency([0.001 * number for number in range(1, calls + 1)])
    assert (result.p90 is not None, result.p99 is not None) == (p90, p99)
    assert all(one < result.max for one in (result.p90, result.p99) if one)


def test_timed_returns_the_result():
    result, seconds = timed(lambda: 7)
    assert result == 7
    assert 0 <= seconds < 1


def test_calls_take_turns():
    order = []
    calls = {label: lambda label=label: order.append(label) for label in "ab"}
    results = interleaved_latency(calls, runs=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert results["a"].n == 2


def test_the_garbage_collector_is_off_within_and_on_after():
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


class Clock:
    """Stands for time.perf_counter: every call of `work` takes the next of the given durations."""

    def __init__(self, durations):
        self.now, self.durations = 0.0, iter(durations)

    def __call__(self):
        return self.now

    def work(self):
        self.now += next(self.durations)


def warmed(monkeypatch, durations, runs):
    clock = Clock(durations)
    monkeypatch.setattr("common.scoring.latency.time.perf_counter", clock)
    return warm_up(clock.work, runs)


def test_warm_up_stops_when_a_block_is_not_faster(monkeypatch):
    result = warmed(monkeypatch, [0.9, 0.5, 0.11, 0.1, 0.09, 0.11, 0.7], runs=3)
    # 0.9 and 0.5 fill a block each; the blocks (0.11, 0.1) and (0.09, 0.11) differ by less than 5 %
    assert (result.runs, result.steady) == (6, True)
    assert result.block_medians_ms == pytest.approx((900, 500, 105, 100))


def test_warm_up_does_not_wait_for_a_machine_that_gets_slower(monkeypatch):
    result = warmed(monkeypatch, [1.0, 1.5, 2.0, 2.5], runs=3)
    assert (result.runs, result.steady) == (3, True)


def test_warm_up_of_long_calls_takes_what_is_asked_for(monkeypatch):
    assert warmed(monkeypatch, [3.0, 2.0, 2.0, 2.0], runs=3).runs == 3


def test_warm_up_of_short_calls_compares_many(monkeypatch):
    result = warmed(monkeypatch, [0.001] * 1000, runs=3)
    assert result.steady
    assert result.runs == pytest.approx(400, abs=2)


def test_warm_up_gives_up_on_a_model_that_gets_ever_faster(monkeypatch):
    result = warmed(monkeypatch, [0.9**run for run in range(99)], runs=3)
    assert (result.runs, result.steady) == (3 + MOST_BLOCKS, False)


def test_no_warm_up_when_none_is_asked_for(monkeypatch):
    assert warmed(monkeypatch, [], runs=0).runs == 0


def test_untimed_calls_stand_before_each_timed_one():
    made = []
    calls = {label: partial(made.append, label) for label in "ab"}
    measured = interleaved_latency(calls, runs=2, warmup=1, untimed=1)
    assert made == 3 * ["a", "a", "b", "b"]
    assert [latency.n for latency in measured.values()] == [2, 2]
