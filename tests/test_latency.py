import pytest

from common.latency import Latency, latency, timed


def test_percentiles_of_a_hundred_known_calls():
    result = latency([milliseconds / 1000 for milliseconds in range(1, 102)])  # 1, 2, ..., 101 ms
    assert result == Latency(
        mean=pytest.approx(51), p50=pytest.approx(51), p90=pytest.approx(91), p99=pytest.approx(100), n=101
    )
    assert result.per_second == pytest.approx(1000 / 51)


def test_no_call_is_an_error():
    with pytest.raises(ValueError, match="time at least one"):
        latency([])


def test_timed_returns_the_result():
    result, seconds = timed(lambda: 7)
    assert result == 7
    assert 0 <= seconds < 1
