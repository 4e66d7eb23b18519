import os
import signal

import pytest

from common.system.signals import StopRequest


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal: a shell starts its background jobs with SIGINT ignored."""
    as_there = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in as_there.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_noted_and_a_second_one_is_not_held_back():
    with StopRequest().listening() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_work_that_may_be_dropped_is_broken_off():
    done = []
    with StopRequest().listening() as stop:
        assert stop.unless_stopped(lambda: 7) == 7
        assert stop.unless_stopped(lambda: (os.kill(os.getpid(), signal.SIGINT), done.append(1))) is None
        assert stop.unless_stopped(lambda: done.append(2)) is None
        assert stop.signal == signal.SIGINT
    assert not done


def test_other_errors_of_the_work_pass():
    with StopRequest().listening() as stop, pytest.raises(ZeroDivisionError):
        stop.unless_stopped(lambda: 1 / 0)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lost_terminal_stops_a_run():
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGHUP
